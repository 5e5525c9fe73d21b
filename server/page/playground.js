/* The playground: a prompt, its reply as it comes, and what both took. */
import {ApiError, events, key, models, request} from "./api.js";
import {$, count, duration, el, number, options, say} from "./dom.js";

const view = $("playground");
let messages = []; /* of the conversation so far, as the API has them */
let loaded = []; /* models */
let running = null; /* the AbortController of the reply that comes */

const modes = () => document.getElementsByName("mode");
const isChat = () => $("mode-chat").checked;

/* ---- The request ---- */

/* A line each; \n in one is a new line. */
const stops = () => $("stop").value.split("\n").filter((line) => line !== "")
    .map((line) => line.replaceAll("\\n", "\n"));

/* What is left empty is left out: the server's own value. */
function body() {
    const it = {model: $("model").value || undefined};
    if (isChat()) it.messages = conversation();
    else it.prompt = $("prompt").value;
    for (const name of ["max_tokens", "temperature", "top_p", "top_k", "seed"])
        it[name] = number($(name));
    if (stops().length > 0) it.stop = stops();
    return {...it, stream: true, stream_options: {include_usage: true}};
}

function conversation() {
    const system = $("system").value.trim(), text = $("prompt").value;
    return [...(system ? [{role: "system", content: system}] : []), ...messages,
        ...(text ? [{role: "user", content: text}] : [])];
}

const path = () => isChat() ? "v1/chat/completions" : "v1/completions";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/* What does the same from a shell. The key is not shown. */
function curl() {
    const lines = [`curl -N ${quoted(new URL(path(), document.baseURI).href)}`,
        "-H 'Content-Type: application/json'"];
    if (key()) lines.push("-H \"Authorization: Bearer $KEY\"");
    return [...lines, `-d ${quoted(JSON.stringify(body()))}`].join(" \\\n     ");
}

function showCurl() {
    if ($("curl-box").open) $("curl").textContent = curl();
}

async function copyCurl() {
    try {
        await navigator.clipboard.writeText(curl());
        $("copy").textContent = "Copied";
    } catch { /* no leave, or not over HTTPS: it is selected, for the keyboard */
        getSelection().selectAllChildren($("curl"));
        $("copy").textContent = "Selected";
    }
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

/* ---- The reply ---- */

/* Times and tokens of one reply, told as they come. */
class Pace {
    constructor() {
        this.begin = performance.now();
        this.pieces = 0;
    }
    piece() {
        this.last = performance.now();
        this.first ??= this.last;
        this.pieces++;
    }
    words(end) {
        if (!this.first) return end ? [end] : ["waiting"];
        const tokens = this.usage ? this.usage.completion_tokens : this.pieces;
        const seconds = (this.last - this.first) / 1000;
        const words = [`first token after ${duration((this.first - this.begin) / 1000)}`];
        if (tokens > 1 && seconds > 0) words.push(`${count((tokens - 1) / seconds)} tokens/s`);
        if (this.usage) words.push(`${count(this.usage.prompt_tokens)} + ${count(tokens)} tokens`);
        return end ? [end, ...words] : words;
    }
}

/* A paragraph of the output that a reply, or what was asked, goes into. */
function paragraph(role, text) {
    const node = el("span", {class: role}, text);
    const who = el("b", {}, role === "user" ? "You" : "Model");
    $("output").append(isChat() ? el("div", {class: `turn ${role}`}, who, node) : node);
    return node;
}

/* Does the reader stand at the end? Then he goes on standing there. */
function append(node, text) {
    const box = $("output");
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    node.append(text);
    if (follows) box.scrollTop = box.scrollHeight;
}

async function receive(response, node, pace) {
    let reason = null;
    for await (const event of events(response)) {
        running.signal.throwIfAborted(); /* what has come already stays unread */
        if (event.usage) pace.usage = event.usage;
        const choice = event.choices[0];
        if (!choice) continue;
        const text = isChat() ? choice.delta.content : choice.text;
        if (text) {
            pace.piece();
            append(node, text);
        }
        reason = choice.finish_reason || reason;
        $("pace").textContent = pace.words().join(" · ");
    }
    return reason;
}

function setRunning(controller) {
    running = controller;
    $("run").disabled = controller !== null;
    $("stop-run").disabled = controller === null;
    $("clear").disabled = controller !== null || messages.length === 0;
    $("output").setAttribute("aria-busy", controller !== null);
    for (const mode of modes()) mode.disabled = controller !== null;
}

/* The turn is part of the conversation only when there was a reply to it. */
function keepTurn(asked, reply) {
    if (!isChat() || reply === "") return;
    messages.push({role: "user", content: asked}, {role: "assistant", content: reply});
}

async function run() {
    if (running) return;
    const asked = $("prompt").value, pace = new Pace(), sent = body();
    if (isChat() && asked.trim() === "") return;
    say($("play-note"), "");
    setRunning(new AbortController());
    if (!isChat()) $("output").replaceChildren();
    $("pace").textContent = pace.words().join(" · ");
    paragraph("user", asked);
    if (isChat()) $("prompt").value = "";
    const node = paragraph("assistant", "");
    let end = "";
    try {
        const response = await request(path(), {body: sent, signal: running.signal});
        end = `finish_reason ${await receive(response, node, pace)}`;
    } catch (error) {
        end = error.name === "AbortError" ? "stopped; its memory is free again" : "failed";
        if (!(error instanceof ApiError) && error.name !== "AbortError") throw error;
        if (error instanceof ApiError) say($("play-note"), error.message);
        if (isChat() && node.textContent === "") $("prompt").value = asked;
    } finally {
        $("pace").textContent = pace.words(end).join(" · ");
        keepTurn(asked, node.textContent);
        setRunning(null);
    }
}

/* ---- The form ---- */

async function listModels(wanted) {
    try {
        loaded = (await models()).filter((model) => model.loaded);
    } catch (error) {
        say($("play-note"), error.message);
        return;
    }
    say($("play-note"), loaded.length === 0 ? "No model is loaded." : "", "plain");
    options($("model"), loaded.map(({id}) => [id, id]));
    if (loaded.some(({id}) => id === wanted)) $("model").value = wanted;
    tellModel();
}

function tellModel() {
    const model = loaded.find(({id}) => id === $("model").value);
    $("model-facts").textContent = model ? `${count(model.parameters)} parameters, `
        + `${count(model.max_model_len)} tokens of context` : "";
}

function clear() {
    messages = [];
    $("output").replaceChildren();
    $("pace").textContent = "";
    say($("play-note"), "");
    $("clear").disabled = true;
}

function setMode() {
    clear();
    view.classList.toggle("chat", isChat());
    $("prompt-label").textContent = isChat() ? "Message" : "Prompt";
    showCurl();
}

/* Ctrl+Enter runs; Enter alone too where a message is typed. Escape stops. */
function onKey(event) {
    const enter = event.key === "Enter" && !event.isComposing;
    const alone = isChat() && event.target === $("prompt") && !event.shiftKey;
    if (enter && (event.ctrlKey || event.metaKey || alone)) {
        event.preventDefault();
        $("play-form").requestSubmit();
    }
    if (event.key === "Escape" && running) running.abort();
}

export function startPlayground() {
    $("play-form").addEventListener("submit", (event) => {
        event.preventDefault();
        run();
    });
    view.addEventListener("keydown", onKey);
    view.addEventListener("input", showCurl);
    $("stop-run").addEventListener("click", () => running?.abort());
    $("clear").addEventListener("click", clear);
    $("copy").addEventListener("click", copyCurl);
    $("curl-box").addEventListener("toggle", showCurl);
    $("model").addEventListener("change", tellModel);
    for (const mode of modes()) mode.addEventListener("change", setMode);
    view.addEventListener("shown", (event) => listModels(event.detail)); /* #playground/MODEL */
    for (const news of ["key", "models"]) document.addEventListener(news, () => listModels());
}
