/* The page: one view at a time, by what follows # in the address (#memory, #training/JOB), and the
 * key. */
import {key, setKey} from "./api.js";
import {$} from "./dom.js";
import {startPlayground} from "./playground.js";
import {startMemory} from "./memory.js";
import {startPlan} from "./plan.js";
import {startTraining} from "./training.js";

const views = ["playground", "memory", "training"];

function plain(encoded) {
    try {
        return decodeURIComponent(encoded);
    } catch { /* typed by hand, wrongly */
        return "";
    }
}

/* The view, and what follows it, for the view to read. */
function show() {
    const [, name, rest] = location.hash.match(/^#?([^/]*)\/?(.*)/);
    const chosen = views.includes(name) ? name : views[0];
    for (const each of views) {
        $(each).hidden = each !== chosen;
        const link = $(`to-${each}`);
        if (each === chosen) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
    }
    document.title = `gptd: ${chosen}`;
    $(chosen).dispatchEvent(new CustomEvent("shown", {detail: plain(rest)}));
}

function openKey(open) {
    $("key-form").hidden = !open;
    $("key-button").setAttribute("aria-expanded", open);
    if (open) $("key").focus();
}

function tellKey() {
    $("key-button").textContent = key() ? "Key: set" : "Key";
}

function startKey() {
    $("key-button").addEventListener("click", () => openKey($("key-form").hidden));
    $("key-form").addEventListener("submit", (event) => {
        event.preventDefault();
        openKey(false);
        setKey($("key").value.trim());
        $("key").value = "";
    });
    $("key-forget").addEventListener("click", () => setKey(""));
    document.addEventListener("wanted", () => { if ($("key-form").hidden) openKey(true); });
    document.addEventListener("key", tellKey);
    tellKey();
}

startKey();
startPlayground();
startMemory();
startPlan();
startTraining();
addEventListener("hashchange", show);
show();
