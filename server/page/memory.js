/* The memory view: GET /v1/memory, as numbers, as bars and as an hour's lines. */
import {json} from "./api.js";
import {$, amount, bytes, clock, count, el, hint, poll, table} from "./dom.js";
import {Plot, bar, mark} from "./plot.js";

const WATCH_S = 3, HISTORY_S = 10;

const total = (list, field) => list.reduce((n, each) => n + each[field], 0);

/* Lines of name, bytes, why and colour; what they add up to last. */
const sum = (rows, [name, n]) => table(
    rows.map(([what, m, why, colour]) =>
        [el("span", {title: why}, mark(colour), what), amount(m)]),
    {foot: [name, amount(n)]});

/* The same with a bar of the rows that have a colour. */
const bars = (rows, whole, foot) => [bar(rows.filter(([, , , colour]) => colour)
    .map(([, n, , colour]) => [colour, n]), whole, {height: 18}), sum(rows, foot)];

/* ---- Heads ---- */

const fact = (name, value, more) => el("div", {}, hint(name), el("b", {}, value), hint(more));

function showHeads({devices, process, kv_pages: pages}) {
    const planned = total(devices, "planned_bytes"), allocated = total(devices, "allocated_bytes");
    const drivers = devices.flatMap((device) => device.driver ?? []);
    $("memory-heads").replaceChildren(
        fact("Process", amount(process.rss_bytes), `peak ${bytes(process.peak_rss_bytes)}`),
        fact("Models, planned", amount(planned, {id: "planned"}),
            `allocated: ${allocated === planned ? "the same, to the byte" : bytes(allocated)}`),
        fact("KV pages", `${count(pages.used)} / ${count(pages.total)}`,
            `most ever ${count(pages.high_water)}`),
        fact("Unexplained", amount(process.unexplained_bytes + total(drivers, "unexplained_bytes")),
            "in no list"));
}

/* ---- Cards ---- */

function modelTable(model) {
    const parts = Object.entries(model.components).filter(([, c]) => c.planned_bytes > 0);
    const whole = Math.max(...parts.map(([, c]) => c.planned_bytes));
    const numbers = (c, props) =>
        [amount(c.planned_bytes, props), amount(c.in_use_bytes), amount(c.peak_bytes)];
    const rows = parts.map(([name, c]) => [name,
        bar([["one", c.in_use_bytes]], whole, {track: c.planned_bytes, peak: c.peak_bytes}),
        ...numbers(c, {"data-component": name})]);
    return el("div", {}, el("h3", {}, model.id), table(rows, {
        head: ["component", "", "planned", "in use", "peak"], foot: ["all", "", ...numbers(model)],
    }));
}

function showPages(pages) {
    const of = (name, words = name) => `${count(pages[name])} ${words}`;
    $("memory-pages").replaceChildren(
        bar([["one", pages.used], ["three", pages.cached]], pages.total,
            {peak: pages.high_water, height: 18}),
        hint(of("used"), of("cached", "cached prefixes"), of("free"), of("reserved", "promised"),
            of("shared"), `most ever ${count(pages.high_water)}`),
        hint(`a page: ${pages.page_tokens} tokens, ${bytes(pages.page_bytes)}`));
}

function showProcess(p) {
    const {rss_bytes: all, baseline_bytes: before, heap_bytes: heap, file_bytes: code} = p;
    const models = all - before - heap - code - p.unexplained_bytes;
    $("memory-process").replaceChildren(
        ...bars([
            ["before the first model", before, "the program itself", "four"],
            ["models, as allocated", models, "what was not touched yet is not resident", "one"],
            ["heap", heap, "tokenizers, connections, requests", "two"],
            ["code that has run", code, "mapped files", "three"],
            ["unexplained", p.unexplained_bytes,
                "stacks, malloc's own; negative where allocated memory was not touched yet"],
        ], all, ["resident", all]));
}

function driverCard({name, driver, resident_bytes: models}) {
    const {total_bytes: whole, start_bytes: before, unexplained_bytes: rest} = driver;
    return el("div", {class: "card"}, el("h2", {}, `${name}, as its driver counts`),
        ...bars([
            ["before the first model", before, "the context, kernels, other programs", "four"],
            ["models", models, "as planned", "one"], ["unexplained", rest, "in no list", "two"],
        ], whole, [`in use, of ${bytes(whole)}`, whole - driver.free_bytes]));
}

function jobCard(job) {
    return el("div", {class: "card"}, el("h2", {}, "Training job"),
        el("p", {}, el("a", {href: `#training/${job.id}`}, job.id)),
        sum([["planned", job.planned_bytes], ["before the model", job.baseline_bytes],
            ["unexplained", job.unexplained_bytes]], ["resident", job.rss_bytes]));
}

function show(m) {
    showHeads(m);
    $("memory-components").replaceChildren(...m.models.map(modelTable),
        hint("bar: in use, of planned", "tick: peak"));
    showPages(m.kv_pages);
    showProcess(m.process);
    const counted = m.devices.filter((device) => device.driver);
    $("memory-driver").replaceChildren(...counted.map(driverCard));
    $("memory-jobs").replaceChildren(...m.jobs.map(jobCard));
}

/* ---- The hour ---- */

const powerOf1024 = (n) => 1024 ** Math.max(0, Math.floor(Math.log(n) / Math.log(1024)));

function showHistory(plot, samples) {
    const line = (name, field) =>
        ({name, points: samples.map((sample) => [sample.time, sample[field]])});
    const training = samples.some((sample) => sample.jobs_rss_bytes > 0);
    plot.draw([line("process", "rss_bytes"), line("models", "resident_bytes"),
        line("KV pages in use", "kv_in_use_bytes"),
        ...(training ? [line("training", "jobs_rss_bytes")] : [])]);
}

export function startMemory() {
    const plot = new Plot($("memory-history"), {
        label: "Memory over the last hour", zero: true, words: {x: clock, y: bytes, at: clock},
        xUnit: 60, yUnit: powerOf1024,
    });
    let asked_ms = -Infinity;
    poll($("memory"), $("memory-note"), WATCH_S, async () => {
        const history = performance.now() - asked_ms > HISTORY_S * 1000;
        const m = await json(`v1/memory?history=${history ? 1 : 0}`);
        show(m);
        if (!history) return;
        showHistory(plot, m.history.samples);
        asked_ms = performance.now();
    });
}
