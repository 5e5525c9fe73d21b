"""The web page in a browser (Debian's chromium), as people use it. Whatever a test does: no error
in the browser's console, none of the policy's violations, no request to anyone else."""

import contextlib
import json
import re
import shutil
import subprocess

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

import gptd
from gptd import PATIENCE, complete, events, joined, memory

PROMPT = "ROMEO:\nIt's a \"test\" of $HOME, \\n, <b>bold</b> and été"
TEXT = "the quick brown fox jumps over the lazy dog\n" * 400
WAIT_MS = 30_000 * PATIENCE


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = gptd.Server("--data-dir", tmp_path_factory.mktemp("browser") / "data")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        # Containers have neither the sandbox's privileges nor a large /dev/shm.
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"),
                                              args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def opened(browser, url, expected=None, **options):
    """A new tab. What goes wrong in it fails the test, but for what matches `expected`."""
    wrong = []
    origin = re.match(r"https?://[^/]+", url).group()
    context = browser.new_context(locale="en-US", **options)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text)
            if message.type in ("error", "warning") else None)
    page.on("request", lambda request: wrong.append(f"asked {request.url}")
            if not request.url.startswith(origin + "/") else None)
    page.goto(url)
    yield page
    context.close()
    wrong = [what for what in wrong if not (expected and re.search(expected, what))]
    assert not wrong


@pytest.fixture
def page(browser, server):
    with opened(browser, server.url + "/") as page:
        expect(page.locator("#model option")).not_to_have_count(0)
        yield page


def run(page, prompt, **settings):
    """Types, runs, and waits for the end; returns the reply."""
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))
    page.fill("#prompt", prompt)
    page.click("#run")
    expect(page.locator("#run")).to_be_enabled()
    return page.locator("#output .assistant").last.text_content()


def as_bytes(page, selector):
    """The number behind what is shown."""
    return int(page.locator(selector).first.get_attribute("value"))


# ---- Playground ----

def test_a_prompt_continued(page, http):
    text = run(page, PROMPT, max_tokens=60, seed=7, temperature=1)
    asked = {"prompt": PROMPT, "max_tokens": 60, "seed": 7, "temperature": 1}
    reply = complete(http, **asked)
    assert text == reply["choices"][0]["text"] and text
    assert page.locator("#output .user").text_content() == PROMPT
    usage = reply["usage"]
    words = page.text_content("#pace")
    assert "finish_reason length" in words and "first token after" in words
    assert re.search(r"[\d,]+ tokens/s", words)
    assert f"{usage['prompt_tokens']} + 60 tokens" in words


def test_the_curl_command_does_the_same(page):
    text = run(page, PROMPT, max_tokens=30, seed=3, stop="zzz\n\\n\\n\\n\\n")
    page.click("#curl-box summary")
    expect(page.locator("#curl")).to_contain_text("curl -N")
    command = page.text_content("#curl")
    assert json.loads(re.search(r"-d '(.*)'$", command.replace("'\\''", "'"), re.S).group(1))[
        "stop"] == ["zzz", "\n\n\n\n"]
    # What runs it is not bash's business: the words, as a shell splits them.
    done = subprocess.run(["bash", "-c", command.replace("curl -N", "curl -sSN --noproxy '*'")],
                          capture_output=True, text=True, timeout=60, check=True)
    assert joined(events(done.stdout.splitlines())) == text


def test_a_reply_is_stopped_at_its_first_word(page, http):
    """Its memory is free again; what had come stays."""
    page.evaluate("""new MutationObserver(() => {
        if (document.querySelector("#output .assistant")?.textContent)
            document.getElementById("stop-run").click();
    }).observe(document.getElementById("output"), {subtree: true, childList: true})""")
    def gone():
        metrics = http.get("/metrics").text
        return float(re.search(r"^gptd_clients_gone_total (\S+)", metrics, re.M)[1])

    before = gone()
    page.fill("#max_tokens", "240")
    page.fill("#prompt", "x")
    for _ in range(20):  # where others work too, a reply may be written before its reader is awake
        page.press("#prompt", "Control+Enter")
        expect(page.locator("#run")).to_be_enabled()
        assert "stopped; its memory is free again" in page.text_content("#pace")
        gptd.wait_until(lambda: memory(http)["kv_pages"]["used"] == 0, what="no page in use")
        if gone() > before:
            break
    assert gone() > before
    assert 1 < len(page.text_content("#output")) < 400


def test_a_request_that_waits_is_stopped(page):
    page.route("**/v1/completions", lambda route: None)  # never answered
    page.click("#run")
    expect(page.locator("#pace")).to_have_text("waiting")
    page.press("#prompt", "Escape")
    expect(page.locator("#pace")).to_have_text("stopped; its memory is free again")
    page.unroute("**/v1/completions")
    assert run(page, "x", max_tokens=2)


def test_chat_keeps_the_conversation(page):
    sent = []
    page.on("request", lambda request: sent.append(json.loads(request.post_data))
            if request.method == "POST" else None)
    page.check("#mode-chat")
    page.fill("#max_tokens", "8")
    page.fill("#system", "Be brief.")
    for text in ("One?", "Two?"):
        page.fill("#prompt", text)
        page.press("#prompt", "Enter")
        expect(page.locator("#run")).to_be_enabled()
        assert page.input_value("#prompt") == ""
    first = page.locator("#output .turn.assistant span").first.text_content()
    assert [message["content"] for message in sent[1]["messages"]] == [
        "Be brief.", "One?", first, "Two?"]
    assert page.locator("#output .turn").count() == 4
    page.click("#clear")
    assert page.text_content("#output") == ""


def test_errors_in_the_servers_words(browser, server):
    with opened(browser, server.url + "/", expected="400") as page:
        expect(page.locator("#model option")).not_to_have_count(0)
        run(page, "x", top_p=77)
        assert "'top_p'" in page.text_content("#play-note")
        assert run(page, "x", top_p=1, max_tokens=5)
        assert page.text_content("#play-note") == ""


def test_events_in_any_pieces(page):
    """A stream cut after every byte, within characters too, and with other line ends."""
    stream = ': hello\n\ndata: {"a":"é€😀"}\n\ndata: {"b":\r\ndata: 2}\r\n\r\ndata: [DONE]\n\n'
    assert page.evaluate("""async (text) => {
        const {events} = await import("./page/api.js");
        const bytes = new TextEncoder().encode(text), found = [];
        let at = 0;
        const body = new ReadableStream({pull(c) {
            if (at === bytes.length) c.close(); else c.enqueue(bytes.slice(at, ++at));
        }});
        for await (const event of events(new Response(body))) found.push(event);
        return found;
    }""", stream) == [{"a": "é€😀"}, {"b": 2}]
    assert page.evaluate("""async () => {
        const {events} = await import("./page/api.js");
        try { for await (const _ of events(new Response('data: {}\\n\\ndata: {"cut'))); }
        catch (error) { return error.message; }
    }""") == "The server broke off in the middle."


# ---- Memory ----

def test_memory_is_what_the_api_says(page, http):
    page.click("#to-memory")
    expect(page.locator("#memory-components tbody tr")).not_to_have_count(0)
    now = memory(http)
    assert as_bytes(page, "#planned") == now["devices"][0]["planned_bytes"]
    shown = {row.get_attribute("data-component"): int(row.get_attribute("value"))
             for row in page.locator("#memory-components [data-component]").all()}
    assert shown == {name: c["planned_bytes"] for name, c in now["models"][0]["components"].items()
                     if c["planned_bytes"] > 0}
    rows = page.locator("#memory-process data").all()
    parts = [int(row.get_attribute("value")) for row in rows]
    assert sum(parts[:-1]) == parts[-1] > now["process"]["baseline_bytes"]
    expect(page.locator("#memory-history path.one, #memory-history circle.one")).to_have_count(1)
    assert f"/ {now['kv_pages']['total']}" in page.text_content("#memory-heads")


def test_a_gpu_as_its_driver_counts(page, server, http):
    """And a job beside: what a server with both would say."""
    now = memory(http)
    driver = {"total_bytes": 1000, "free_bytes": 300, "start_bytes": 250, "unexplained_bytes": 50}
    now["devices"][0] |= {"name": "cuda:0", "driver": driver, "resident_bytes": 400}
    now["jobs"] = [{"id": "ftjob-x", "reported": True, "planned_bytes": 70, "components": {},
                    "rss_bytes": 90, "peak_rss_bytes": 90, "baseline_bytes": 15,
                    "unexplained_bytes": 5}]
    now["history"] = {"interval_s": 10, "samples": []}
    page.route("**/v1/memory?*", lambda route: route.fulfill(json=now))
    page.click("#to-memory")
    expect(page.locator("#memory-driver h2")).to_have_text("cuda:0, as its driver counts")
    for card, numbers in (("driver", [250, 400, 50, 700]), ("jobs", [70, 15, 5, 90])):
        shown = page.locator(f"#memory-{card} data").all()
        assert [int(each.get_attribute("value")) for each in shown] == numbers
    unexplained = int(page.locator("#memory-heads data").last.get_attribute("value"))
    assert unexplained == now["process"]["unexplained_bytes"] + 50


def test_who_is_told_to_come_back_later_does(browser, server):
    with opened(browser, server.url + "/", expected="status of 429") as page:
        asked = []
        reply = {"error": {"message": "too many", "type": "x", "param": None, "code": "x"}}
        page.route("**/v1/memory?*", lambda route: (
            asked.append(1), route.fulfill(json=reply, status=429, headers={"Retry-After": "60"})))
        page.clock.install()
        page.reload()
        page.click("#to-memory")
        expect(page.locator("#memory-note")).to_have_text("Too many.")
        page.clock.run_for(50_000)
        assert len(asked) == 1
        page.clock.run_for(20_000)
        page.wait_for_load_state("networkidle")
        assert len(asked) == 2


def test_does_it_fit(page, http):
    page.goto(page.url.split("#")[0] + "#memory")
    expect(page.locator("#plan-model option[value='configs/150M']")).to_have_count(1)
    page.select_option("#plan-model", "configs/150M")
    for budget, verdict in (("8GiB", "It fits into"), ("1GiB", "It does not fit into")):
        page.fill("#plan-gpu", budget)
        page.click("#plan-form button")
        expect(page.locator("#plan-verdict")).to_contain_text(verdict)
        answer = http.post("/v1/memory/plan", json={"model": "configs/150M", "gpu": budget}).json()
        assert as_bytes(page, "[data-part=Training]") == answer["training"]["total_bytes"]
        assert as_bytes(page, "[data-part=Generating]") == answer["generation"]["total_bytes"]


# ---- Training ----

def test_from_a_text_to_a_model_that_answers(page):
    page.click("#to-training")
    page.set_input_files("#train-file", {"name": "<b>fox.txt", "mimeType": "text/plain",
                                         "buffer": TEXT.encode()})
    page.select_option("#train-base", "configs/tiny_char")
    fields = {"name": "fox", "max_iters": 24, "batch_size": 4, "eval_interval": 12}
    for name, value in fields.items():
        page.fill(f"#train-{name}", str(value))
    page.click("#train")
    loss = page.locator("#job path.one").first
    expect(loss).to_have_attribute("d", re.compile("M.*L.*L"))  # points, as they come
    expect(page.locator("#job .status")).to_have_text("succeeded")
    expect(page.locator("#job path.two, #job circle.two")).not_to_have_count(0)
    expect(page.locator("#job progress")).to_have_attribute("value", "1")
    expect(page.locator("#jobs td").first).to_have_text("fox")
    assert "<b>fox.txt, 17.2 KiB" in page.text_content("#train-uploaded")
    page.get_by_role("button", name="Load").first.click()
    page.get_by_role("link", name="Try it in the playground").click()
    expect(page.locator("#model")).to_have_value("fox")
    assert run(page, "the quick", max_tokens=20)
    page.reload()
    expect(page.locator("#model")).to_have_value("fox")


def test_a_job_paused_resumed_and_canceled(browser, tmp_path):
    """With tests/fake_trainer.py, which obeys the text's first line. Another tab, opened by the
    job's own address, sees the same. The first stream of events breaks off after some of them."""
    def cut(route):
        past = httpx.get(route.request.url.split("?")[0]).json()["data"]
        route.fulfill(content_type="text/event-stream",
                      body="".join(f"data: {json.dumps(event)}\n\n" for event in past[::-1]))

    server = gptd.Server("--data-dir", tmp_path / "data", "--trainer",
                         gptd.ROOT / "tests" / "fake_trainer.py")
    text = {"name": "slow.txt", "mimeType": "text/plain", "buffer": b"steps=4000 pause=0.05\n"}
    with opened(browser, server.url + "/#training") as page:
        page.route("**/events?*", cut, times=1)
        page.set_input_files("#train-file", text)
        page.click("#train")
        status = page.locator("#job .status")
        expect(status).to_have_text("running")
        expect(page.locator("#job path.one").first).to_have_attribute("d", re.compile("M.*L"))
        with opened(browser, page.url) as other:
            expect(other.locator("#job path.one").first).to_have_attribute("d", re.compile("M.*L"))
        for button, state in (("Pause", "paused"), ("Resume", "running"), ("Cancel", "cancelled")):
            page.get_by_role("button", name=button).click()
            expect(status).to_have_text(state)
        expect(page.locator("#job > .row button")).to_have_text("Close")
        expect(page.locator(".log li", has_text="cancel")).to_have_count(1)
        expect(page.locator(".log li", has_text="Created")).to_have_count(1)
        expect(page.locator("#job td").first).to_have_text(re.compile("step [0-9]+"))
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#job")).to_be_hidden()
        expect(page.locator("#jobs .status")).to_have_text("cancelled")
    server.stop()


# ---- Keys, places and sizes ----

def test_keys(browser, tmp_path):
    keys = {}
    for who in ("user", "admin"):
        keys[who] = gptd.run("key", "new").stdout.strip()
        (tmp_path / who).write_text(keys[who] + "\n")
        (tmp_path / who).chmod(0o600)
    server = gptd.Server("--api-key-file", tmp_path / "user", "--admin-key-file",
                         tmp_path / "admin", "--data-dir", tmp_path / "data")

    def enter(page, key):
        if page.locator("#key-form").is_hidden():
            page.click("#key-button")
        page.fill("#key", key)
        page.press("#key", "Enter")

    with opened(browser, server.url + "/", expected="status of 40[13]|CONNECTION_REFUSED") as page:
        note = page.locator("#play-note")
        expect(note).to_contain_text("The server wants a key")
        enter(page, "gptd-wrong")
        expect(note).to_contain_text("The server refuses this key")
        enter(page, keys["user"])
        expect(note).to_be_empty()
        expect(page.locator("#model")).to_have_value("shakespeare")
        assert run(page, "x", max_tokens=5)
        page.click("#curl-box summary")
        expect(page.locator("#curl")).to_contain_text("Bearer $KEY")
        assert keys["user"] not in page.content()
        page.click("#to-training")
        expect(page.locator("#training-note")).to_contain_text("an admin's key")
        enter(page, keys["admin"])
        expect(page.locator("#training-note")).to_be_empty()
        expect(page.locator("#jobs")).to_contain_text("None yet")
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        expect(page.locator("#jobs")).to_contain_text("None yet")
        server.stop()
        expect(page.locator("#training-note")).to_contain_text("The server does not answer")


def test_behind_a_prefix(browser, server):
    """Where a proxy lays the server at /some/where/."""
    place = "http://proxy.test/some/where"
    context = browser.new_context()
    page = context.new_page()
    page.route("**/*", lambda route: route.fulfill(response=route.fetch(
        url=route.request.url.replace(place, server.url)))
        if route.request.url.startswith(place + "/") else route.abort())
    page.goto(place + "/#memory")
    expect(page.locator("#memory-components tbody tr")).not_to_have_count(0)
    context.close()


@pytest.mark.parametrize("width, scheme", [(360, "dark"), (1600, "light")])
def test_views_fit_their_screen(browser, server, width, scheme):
    with opened(browser, server.url + "/", viewport={"width": width, "height": 800},
                color_scheme=scheme) as page:
        for view in ("playground", "memory", "training"):
            page.click(f"#to-{view}")
            expect(page.locator(f"#{view}")).to_be_visible()
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
