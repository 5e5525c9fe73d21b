/* Elements and words: what all views make their parts of. Text only ever becomes text nodes. */

export const $ = (id) => document.getElementById(id);

function fill(node, props, children) {
    for (const [name, value] of Object.entries(props)) {
        if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
        else if (value != null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child != null));
    return node;
}

/* el("button", {type: "button", onclick: f}, "Stop"): attributes, listeners, children. */
export const el = (tag, props = {}, ...children) =>
    fill(document.createElement(tag), props, children);

export const svg = (tag, props = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);

/* ---- Numbers ---- */

export const count = (n) => Math.round(n).toLocaleString("en");

/* Four digits at most. */
export const short = (x) => Math.abs(x) >= 1000 ? count(x) : String(Number(x.toPrecision(4)));

export function bytes(n) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let at = 0;
    for (; Math.abs(n) >= 1024 && at < units.length - 1; at++) n /= 1024;
    const digits = at === 0 || Math.abs(n) >= 100 ? 0 : Math.abs(n) >= 10 ? 1 : 2;
    return `${n.toFixed(digits)} ${units[at]}`;
}

/* For people in its unit, for machines and for the pointer to the byte. */
export const amount = (n, props = {}) =>
    el("data", {value: n, title: `${count(n)} bytes`, ...props}, bytes(n));

export function duration(s) {
    if (s < 1) return `${Math.round(s * 1000)} ms`;
    if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
    return s < 3600 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

const local = (unix_s, how) => new Date(unix_s * 1000).toLocaleString([], how);

export const clock = (unix_s) => local(unix_s, {timeStyle: "short"});
export const date = (unix_s) => local(unix_s, {dateStyle: "short", timeStyle: "short"});

/* ---- Parts ---- */

/* Where a view says what went wrong, or nothing. What is said already is not said again. */
export function say(node, text, kind = "bad") {
    if (node.textContent === text) return;
    node.textContent = text;
    node.className = text ? `note ${kind}` : "note";
}

/* New content, now and then; the keyboard stays on the link where it was. */
export function renew(node, ...children) {
    const at = node.contains(document.activeElement) && document.activeElement.href;
    node.replaceChildren(...children);
    if (at) [...node.querySelectorAll("a")].find((link) => link.href === at)?.focus();
}

/* Rows of cells; those from column `numbers` on are numbers, unless they are drawn. */
export function table(rows, {head, foot, numbers = 1} = {}) {
    const kind = (cell, i) => cell instanceof SVGElement ? "bar" : i >= numbers ? "n" : null;
    const row = (tag, cells) =>
        el("tr", {}, ...cells.map((cell, i) => el(tag, {class: kind(cell, i)}, cell)));
    const part = (tag, cellTag, cells) => cells && el(tag, {}, row(cellTag, cells));
    return el("div", {class: "scroll"}, el("table", {}, part("thead", "th", head),
        el("tbody", {}, ...rows.map((cells) => row("td", cells))), part("tfoot", "td", foot)));
}

export const hint = (...words) => el("p", {class: "hint"}, words.join(" · "));

/* The options of a select, [value, text] each; what was chosen stays if it still can be. */
export function options(select, pairs) {
    const chosen = select.value;
    select.replaceChildren(...pairs.map(([value, text]) => el("option", {value}, text)));
    if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

/* A field's number; undefined for an empty one: the server's own value. */
export const number = (input) => input.value.trim() === "" ? undefined : Number(input.value);

/* Looks now and every so often while the view is the one that is seen, and says in `note` what went
 * wrong. A look that takes long is not overtaken; who is told to come back later does, and who has
 * no key waits for one. */
export function poll(view, note, seconds, look) {
    let looking = 0, later_ms = 0;
    const due = async () => {
        if (view.hidden || document.hidden) return;
        looking++;
        try {
            await look();
            say(note, "");
            later_ms = 0;
        } catch (error) {
            if (error.name !== "AbortError") say(note, error.message);
            later_ms = Date.now() + (error.retry_s ?? 0) * 1000;
        }
        looking--;
    };
    setInterval(() => { if (looking === 0 && Date.now() >= later_ms) due(); }, seconds * 1000);
    for (const news of ["visibilitychange", "key"]) document.addEventListener(news, due);
    view.addEventListener("shown", due);
}
