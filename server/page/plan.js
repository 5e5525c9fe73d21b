/* "Does it fit?": POST /v1/memory/plan, before anything is taken. */
import {json, models, presets} from "./api.js";
import {$, amount, bytes, count, duration, el, hint, number, options, say, table} from "./dom.js";
import {bar} from "./plot.js";

function body() {
    const text = (id) => $(id).value.trim() || undefined;
    return {
        model: $("plan-model").value, purpose: $("plan-purpose").value,
        gpu: text("plan-gpu"), memory_budget: text("plan-budget"),
        batch_size: number($("plan-batch")), block_size: number($("plan-block")),
        max_seqs: number($("plan-seqs")),
    };
}

const words = (it) => Object.entries(it).map((pair) => pair.join(" ")).join(", ");

/* Training or generating: whether, what it takes, and of what it is made. */
function part(name, it, bounded) {
    const parts = Object.entries(it.components), whole = Math.max(...parts.map(([, n]) => n));
    const verdict = !bounded ? "" : it.fits ? " fits" : ` is short of ${bytes(it.shortfall_bytes)}`;
    return el("div", {},
        el("h3", {}, `${name}${verdict}: `, amount(it.total_bytes, {"data-part": name})),
        table(parts.map(([component, n]) => [component, bar([["one", n]], whole), amount(n)])),
        hint(words(it.options)),
        it.estimated_step_seconds && hint(`a step in about ${duration(it.estimated_step_seconds)}`,
            `${count(it.estimated_tokens_per_s)} tokens/s (${it.estimate_source})`),
        it.largest && hint(`the most that the budget holds: ${words(it.largest)}`));
}

const folded = (title, content) => el("details", {}, el("summary", {}, title), content);

const alternatives = (list) => folded(`Other ways to train it (${list.length})`, table(
    list.map((it) => [words(it.options), amount(it.total_bytes), `x ${it.slowdown.toFixed(2)}`]),
    {head: ["settings", "takes", "its time"]}));

const cards = (gpus) => folded(
    `On which GPUs? (trains on ${gpus.filter((gpu) => gpu.trains).length} of ${gpus.length})`,
    table(gpus.map((gpu) => [gpu.name, amount(gpu.memory_bytes), gpu.generates ? "yes" : "no",
        ...(gpu.trains ? [amount(gpu.training_bytes), count(gpu.estimated_tokens_per_s)]
            : ["no", ""])]),
    {head: ["GPU", "memory", "generates", "trains, taking", "tokens/s"]}));

function show(plan) {
    const budget = plan.budget_bytes, verdict = el("p", {id: "plan-verdict", role: "status"});
    const what = `${plan.model}: ${count(plan.parameters)} parameters, on `
        + `${plan.gpu?.name ?? plan.device}.`;
    if (budget === null) say(verdict, `${what} Into what? Name a GPU or a budget.`, "plain");
    else if (plan.fits) say(verdict, `It fits into ${bytes(budget)}. ${what}`, "good");
    else say(verdict, `It does not fit into ${bytes(budget)}: ${bytes(plan.shortfall_bytes)} are `
        + `missing. ${what}`);
    const purpose = $("plan-purpose").value, bounded = budget !== null;
    $("plan-answer").replaceChildren(verdict, el("div", {class: "columns halves"},
        purpose === "generation" ? null : part("Training", plan.training, bounded),
        purpose === "training" ? null : part("Generating", plan.generation, bounded)),
    ...(plan.alternatives.length > 0 ? [alternatives(plan.alternatives)] : []), cards(plan.gpus));
    options($("plan-gpus"), plan.gpus.map((gpu) => [gpu.name, bytes(gpu.memory_bytes)]));
}

async function plan() {
    try {
        const answer = await json("v1/memory/plan", {body: body()});
        say($("plan-note"), "");
        show(answer);
    } catch (error) {
        $("plan-answer").replaceChildren();
        say($("plan-note"), error.message);
    }
}

async function listModels() {
    try {
        const resident = (await models()).filter((model) => model.loaded);
        options($("plan-model"), [...presets.map((name) => [`configs/${name}`, name]),
            ...resident.map(({id}) => [id, id])]);
    } catch { /* the view itself says why */ }
}

export function startPlan() {
    $("plan-form").addEventListener("submit", (event) => {
        event.preventDefault();
        plan();
    });
    $("memory").addEventListener("shown", listModels);
    for (const news of ["key", "models"]) document.addEventListener(news, listModels);
}
