/* Talks to the server that the page came from: relative addresses, so that it works behind a
 * prefix; the key; errors in the server's words; events as they come. */

const KEY = "gptd-key"; /* in this tab's storage, until it is closed */

export const key = () => sessionStorage.getItem(KEY) || "";

/* Tells everyone, by the event "key". */
export function setKey(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
    document.dispatchEvent(new CustomEvent("key"));
}

export class ApiError extends Error {
    /* retry_s: before that nothing will have changed */
    constructor(text, retry_s = 0) {
        super(text);
        this.retry_s = retry_s;
    }
}

function inWords(status, text) {
    if (status === 401) return `The server ${key() ? "refuses this" : "wants a"} key: ${text}.`;
    if (status === 403) return `Not allowed: ${text}.`;
    return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.?!]$/.test(text) ? "" : "."}`;
}

async function failure(response) {
    let text = `${response.status} ${response.statusText}`;
    try {
        text = (await response.json()).error.message;
    } catch { /* not from gptd itself: a proxy, perhaps */ }
    const {status, headers} = response, closed = status === 401 || status === 403;
    if (status === 401) document.dispatchEvent(new CustomEvent("wanted"));
    return new ApiError(inWords(status, text),
        closed ? Infinity : Number(headers.get("Retry-After")));
}

/* The response of a request that succeeded. `body`: an object for JSON, or a FormData. */
export async function request(path, {method, body, signal} = {}) {
    const headers = {};
    if (key()) headers.Authorization = `Bearer ${key()}`;
    if (body && !(body instanceof FormData)) {
        headers["Content-Type"] = "application/json";
        body = JSON.stringify(body);
    }
    let response;
    try {
        response = await fetch(path, {
            method: method || (body ? "POST" : "GET"), headers, body, signal, cache: "no-store",
        });
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The server does not answer. Does it still run?");
    }
    if (!response.ok) throw await failure(response);
    return response;
}

export const json = async (path, options) => (await request(path, options)).json();

function brokenOff(error) {
    throw error?.name === "AbortError" ? error
        : new ApiError("The server broke off in the middle.");
}

/* The objects of a stream of events, in whatever pieces it comes: a piece may end within a line, or
 * within a character. Leaving the loop ends the request. */
export async function* events(response) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let rest = "", data = [];
    try {
        for (;;) {
            const {done, value} = await reader.read().catch(brokenOff);
            const lines = (rest + decoder.decode(value, {stream: !done})).split("\n");
            rest = lines.pop();
            for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
                if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
                if (line !== "" || data.length === 0) continue;
                const text = data.join("\n");
                data = [];
                if (text === "[DONE]") return;
                const event = JSON.parse(text);
                if (event.error) throw new ApiError(inWords(0, event.error.message));
                yield event;
            }
            if (done) brokenOff();
        }
    } finally {
        reader.cancel().catch(() => {});
    }
}

/* configs/NAME.json. */
export const presets = ["tiny_char", "small_char", "shakespeare", "tiny", "small", "150M", "200M",
    "250M", "150M_1024", "200M_1024", "250M_1024", "350M_1024", "500M_1024", "750M_1024"];

export const models = async () => (await json("v1/models")).data;

/* Tells everyone that models came or went, by the event "models". */
export async function load(name) {
    const model = await json("v1/models/load", {body: {model: name}});
    document.dispatchEvent(new CustomEvent("models"));
    return model;
}
