/* The training view: jobs, one job as it goes (its address is #training/ID), and the form that
 * starts one. Everything here takes an admin's key. */
import {events, json, load, models, presets, request} from "./api.js";
import {$, bytes, clock, count, date, duration, el, hint, number, options, poll, renew, say, short,
    table} from "./dom.js";
import {Plot} from "./plot.js";

const WATCH_S = 3;
const KEYS = ["max_iters", "batch_size", "learning_rate", "eval_interval", "save_interval", "seed"];

let shown = null; /* the Watch of the job that is shown */

const fails = (note) => (error) => {
    if (error.name !== "AbortError") say($(note), error.message);
};

/* ---- Jobs ---- */

const status = (job) => el("span", {class: `status ${job.status}`}, job.status);

const button = (text, onclick, kind) => el("button", {type: "button", class: kind, onclick}, text);

const name = (job) => job.fine_tuned_model ?? job.suffix ?? job.id;

/* How far it is: by its steps where their number was given, else by its time. */
function share({status: state, step, training, started_at: begin, estimated_finish: end}) {
    if (state === "succeeded") return 1;
    if (training.max_iters) return step / training.max_iters;
    return end ? (Date.now() / 1000 - begin) / Math.max(1, end - begin) : 0;
}

function progress({step, training, estimated_finish: end}) {
    const of = training.max_iters ? ` of ${count(training.max_iters)}` : "";
    const left_s = Math.max(0, end - Date.now() / 1000);
    return `step ${count(step)}${of}${end ? `, ${duration(left_s)} left` : ""}`;
}

function showJobs(jobs) {
    const rows = jobs.map((job) => [el("a", {href: `#training/${job.id}`}, name(job)), status(job),
        job.model, progress(job), date(job.created_at)]);
    const head = ["name", "status", "began with", "progress", "created"];
    renew($("jobs"), rows.length === 0 ? hint("None yet. The form starts one.")
        : table(rows, {head, numbers: 3}));
}

/* ---- One job ---- */

/* A job while it is shown: its events come as a stream until it ends or another one is chosen. */
class Watch {
    constructor(id) {
        this.id = id;
        this.path = encodeURIComponent(id);
        this.end = new AbortController(); /* of all that it waits for */
        this.signal = this.end.signal;
        this.points = {loss: [], valid: [], rate: [], pace: []};
        this.facts = el("div");
        this.note = el("p", {class: "note", role: "status"});
        this.buttons = el("div", {class: "row"});
        this.log = el("ul", {class: "log", tabindex: 0, "aria-label": "Events"});
        this.checkpoints = el("div");
        const frame = (title) => el("div", {}, el("h3", {}, title), el("div"));
        const frames = ["Loss", "Learning rate", "Tokens a second"].map(frame);
        $("job").replaceChildren(this.facts, this.note, this.buttons, frames[0],
            el("div", {class: "columns halves"}, ...frames.slice(1)), this.checkpoints,
            el("h3", {}, "Events"), this.log);
        $("job").hidden = false;
        const words = {x: count, y: short, at: (step) => `step ${count(step)}`};
        this.plots = frames.map((each, i) => new Plot(each.lastChild,
            {label: each.firstChild.textContent, zero: i > 0, words}));
        this.draw();
    }

    /* The job itself, again and again; its events as they come. */
    async look() {
        const job = await json(`v1/fine_tuning/jobs/${this.path}`, {signal: this.signal});
        if (shown !== this) return;
        this.show(job);
        if (job.status !== this.status) {
            this.status = job.status;
            this.showButtons(job);
        }
        await this.listCheckpoints();
        const more = !this.last || ["queued", "running", "paused"].includes(job.status);
        if (more && !this.follows) this.follow().catch(fails("training-note"));
    }

    show(job) {
        const why = job.error?.message ?? job.queued_reason;
        this.facts.replaceChildren(el("h2", {}, `${name(job)} `, status(job)),
            el("progress", {value: Math.min(1, share(job)), "aria-label": "Progress"}),
            hint(progress(job), `began with ${job.model}`, job.id),
            why ? el("p", {class: `note ${job.error ? "bad" : "plain"}`}, why) : "");
    }

    showButtons(job) {
        const when = (states, ...it) => states.includes(job.status) ? [button(...it)] : [];
        const asks = (verb, ...states) => when(states, verb, () => this.ask(verb.toLowerCase()));
        this.buttons.replaceChildren(
            ...when(["succeeded"], "Load", () => this.load(job.fine_tuned_model), "main"),
            ...asks("Pause", "running"), ...asks("Resume", "paused", "failed"),
            ...asks("Cancel", "queued", "running", "paused"),
            button("Close", () => { location.hash = "training"; }));
    }

    async ask(verb) {
        try {
            await request(`v1/fine_tuning/jobs/${this.path}/${verb}`, {method: "POST"});
            say(this.note, "");
            await this.look();
        } catch (error) {
            say(this.note, error.message);
        }
    }

    async load(model) {
        say(this.note, `Loading ${model} …`, "plain");
        try {
            const {id} = await load(model);
            say(this.note, `${id} is loaded. `, "good");
            const href = `#playground/${encodeURIComponent(id)}`;
            this.note.append(el("a", {href}, "Try it in the playground"));
        } catch (error) {
            say(this.note, error.message);
        }
    }

    /* From the last event that is known on: a stream that broke off is taken up by a later look. */
    async follow() {
        this.follows = true;
        try {
            const after = this.last ? `&after=${this.last}` : "", {signal} = this;
            const path = `v1/fine_tuning/jobs/${this.path}/events?stream=true${after}`;
            for await (const event of events(await request(path, {signal}))) this.take(event);
        } finally {
            this.follows = false;
            this.draw();
        }
        if (shown === this) await this.look();
    }

    take({id, type, level, message, created_at, data}) {
        const add = (name, y) => {
            const line = this.points[name];
            while (line.at(-1)?.[0] >= data.step) line.pop(); /* a resumed job makes steps again */
            if (Number.isFinite(y)) line.push([data.step, y]);
        };
        this.last = id;
        if (type === "metrics" && data) {
            add("loss", data.train_loss);
            add("valid", data.valid_loss);
            add("rate", data.lr);
            add("pace", data.tokens_per_s);
        }
        if (type !== "metrics" || Number.isFinite(data?.valid_loss))
            this.log.prepend(el("li", {class: level}, el("time", {}, clock(created_at)), message));
        this.due ??= setTimeout(() => this.draw(), 100); /* a job's past comes at once */
    }

    draw() {
        clearTimeout(this.due);
        this.due = null;
        const {loss, valid, rate, pace} = this.points;
        this.plots[0].draw([{name: "training", points: loss}, {name: "validation", points: valid}]);
        this.plots[1].draw([{name: "learning rate", points: rate}]);
        this.plots[2].draw([{name: "tokens/s", points: pace}]);
    }

    async listCheckpoints() {
        const path = `v1/fine_tuning/jobs/${this.path}/checkpoints?limit=20`, {signal} = this;
        const list = (await json(path, {signal})).data, ids = list.map(({id}) => id).join();
        if (ids === this.ids) return; /* a button that is about to be pressed stays */
        this.ids = ids;
        const loss = (words, n) => Number.isFinite(n) ? `${words} ${short(n)}` : "";
        this.checkpoints.replaceChildren(...(list.length === 0 ? [] : [el("h3", {}, "Checkpoints"),
            table(list.map((it) => [`step ${count(it.step_number)}`,
                loss("loss", it.metrics?.train_loss), loss("validation", it.metrics?.valid_loss),
                button("Load", () => this.load(it.fine_tuned_model_checkpoint))]), {numbers: 3})]));
    }
}

function choose(id) {
    if ((shown?.id ?? "") === id) return;
    shown?.end.abort();
    shown = id ? new Watch(id) : null;
    $("job").hidden = !id;
}

/* ---- The form ---- */

async function listChoices() {
    const [resident, files] = await Promise.all([models(), json("v1/files?limit=100")]);
    options($("train-base"), [...presets.map((preset) => [`configs/${preset}`, `new: ${preset}`]),
        ...resident.map(({id}) => [id, id])]);
    options($("train-uploaded"), [["", files.data.length ? "none of these" : "none yet"],
        ...files.data.map((file) => [file.id, `${file.filename}, ${bytes(file.bytes)}`])]);
}

async function upload(file) {
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", file);
    return (await json("v1/files", {body: form})).id;
}

async function train() {
    const chosen = $("train-file").files[0], uploaded = $("train-uploaded").value;
    if (!chosen && !uploaded) throw new Error("Choose a text to learn.");
    say($("train-note"), chosen ? `Sending ${chosen.name} …` : "Starting …", "plain");
    const keys = Object.fromEntries(KEYS.map((key) => [key, number($(`train-${key}`))]));
    const job = await json("v1/fine_tuning/jobs", {body: {
        ...keys, model: $("train-base").value, suffix: $("train-name").value.trim() || undefined,
        training_file: chosen ? await upload(chosen) : uploaded,
    }});
    say($("train-note"), "");
    $("train-file").value = "";
    location.hash = `training/${job.id}`;
}

/* ---- The view ---- */

async function look() {
    showJobs((await json("v1/fine_tuning/jobs?limit=100")).data);
    await shown?.look();
}

export function startTraining() {
    const view = $("training");
    $("train-keys").append(...KEYS.map((name) => el("label", {}, name,
        el("input", {id: `train-${name}`, type: "number", step: "any"}))));
    const list = () => listChoices().catch(fails("training-note"));
    $("train-form").addEventListener("submit", async (event) => {
        event.preventDefault();
        $("train").disabled = true;
        await train().then(list, fails("train-note"));
        $("train").disabled = false;
    });
    view.addEventListener("shown", (event) => {
        choose(event.detail);
        list();
    });
    for (const news of ["key", "models"])
        document.addEventListener(news, () => { if (!view.hidden) list(); });
    poll(view, $("training-note"), WATCH_S, look);
}
