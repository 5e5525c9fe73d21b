"""Models that come and go while the server answers: load, swap, remove; and from a training job to
a model that is served."""

import shutil
import threading
import time

import httpx
import openai
import pytest

import gptd
from gptd import MODEL, PATIENCE, ROOT, memory, refused, text_of, wait_until

LOAD = "/v1/models/load"
ASKED = {"prompt": "ROMEO:\nWhat light", "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of models: a, a copy of the shipped one, and b, the same with another final norm."""
    folder = tmp_path_factory.mktemp("models")
    for name in "ab":
        shutil.copytree(MODEL, folder / name)
    weights = folder / "b" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    for at in range(len(data) - 400000, len(data), 2):  # signs of some weights
        data[at + 1] ^= 0x80
    weights.write_bytes(data)
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{}")
    (folder / "out").symlink_to("/etc")
    return folder


@pytest.fixture
def server(folder, tmp_path):
    started = gptd.Server("--models-dir", folder, "--data-dir", tmp_path / "data", "--trainer",
                          ROOT / "tests" / "fake_trainer.py")
    yield started
    assert started.running()
    started.stop()


@pytest.fixture
def http(server):
    with server.client() as client:
        yield client


def load(http, model, **more):
    reply = http.post(LOAD, json={"model": model, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def ids(http):
    return [model["id"] for model in http.get("/v1/models").json()["data"]]


def test_load_beside(http, folder):
    before = memory(http)["devices"][0]["allocated_bytes"]
    loaded = load(http, "b")
    assert loaded["id"] == "b" and loaded["root"] == str(folder / "b") and loaded["loaded"]
    assert ids(http) == ["shakespeare", "b"]
    default = text_of(http, **ASKED)
    assert text_of(http, model="shakespeare", **ASKED) == default
    assert text_of(http, model="b", **ASKED) != default
    reply = gptd.complete(http, model="b", **ASKED)
    assert reply["model"] == "b"
    assert reply["system_fingerprint"] == loaded["system_fingerprint"]
    tokens = http.post("/v1/tokenize", json={"model": "b", "prompt": "x"})
    assert tokens.status_code == 200
    entries = memory(http)
    assert [model["id"] for model in entries["models"]] == ["shakespeare", "b"]
    assert entries["devices"][0]["allocated_bytes"] == 2 * before
    assert "gptd_sequences_running 0" in http.get("/metrics").text


def test_several_from_the_start(folder):
    server = gptd.Server("--model", f"second={folder}/b", "--model", folder / "a")
    with server.client() as own:
        assert ids(own) == ["shakespeare", "second", "a"]
        assert own.get("/v1/memory").json()["model"] == "shakespeare"
        default = text_of(own, **ASKED)
        assert text_of(own, model="a", **ASKED) == default  # the same weights
        assert text_of(own, model="second", **ASKED) != default
    server.stop()
    broken = gptd.run("serve", "--port", 0, "--model", MODEL, "--model", folder / "broken")
    assert broken.returncode == 1 and "broken" in broken.stderr and "listening" not in broken.stdout


def test_remove_frees(http):
    load(http, "a", id="second")
    resident = memory(http)["process"]["rss_bytes"]
    one = memory(http)["models"][1]["allocated_bytes"]
    assert text_of(http, model="second", **ASKED)
    steps = int(metric(http, "gptd_engine_steps_total"))
    reply = http.delete("/v1/models/second")
    assert reply.json() == {"id": "second", "object": "model", "deleted": True}
    assert ids(http) == ["shakespeare"]
    error = refused(http, {"model": "second", **ASKED}, 404)
    assert error["code"] == "model_not_found" and "no model 'second' is loaded" in error["message"]
    assert memory(http)["devices"][0]["allocated_bytes"] == one
    assert int(metric(http, "gptd_engine_steps_total")) >= steps
    if not gptd.SANITIZED:
        assert memory(http)["process"]["rss_bytes"] < resident - one // 4
    assert http.delete("/v1/models/second").status_code == 404


def metric(http, name):
    line, = [x for x in http.get("/metrics").text.splitlines() if x.startswith(name + " ")]
    return line.split()[1]


def begin_stream(server, asked):
    """A request on a thread of its own, and what it streams: the first event has come."""
    events, begun = [], threading.Event()

    def run():
        with server.client() as own, own.stream("POST", "/v1/completions",
                                                json={**asked, "stream": True}) as reply:
            for event in gptd.events(reply.iter_lines()):
                events.append(event)
                begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30 * PATIENCE)
    return thread, events


def test_swap_under_a_running_request(server, http):
    """It finishes with the weights, and the fingerprint, that it began with."""
    asked = {"prompt": "KING:", "max_tokens": 240, "n": 4, "temperature": 0, "ignore_eos": True}
    alone = gptd.complete(http, **asked)
    thread, events = begin_stream(server, asked)
    swapped = load(http, "b", id="shakespeare")
    assert ids(http) == ["shakespeare"]
    after = gptd.complete(http, **asked)
    thread.join()
    assert gptd.joined(events) == alone["choices"][0]["text"]
    assert {event["system_fingerprint"] for event in events} == {alone["system_fingerprint"]}
    assert after["system_fingerprint"] == swapped["system_fingerprint"]
    assert after["system_fingerprint"] != alone["system_fingerprint"]
    assert after["choices"][0]["text"] != alone["choices"][0]["text"]
    wait_until(lambda: len(memory(http)["models"]) == 1, 30)


def test_remove_under_a_running_request(server, http):
    """DELETE waits for it; it gets all of its reply."""
    load(http, "a")
    asked = {"model": "a", "prompt": "KING:", "max_tokens": 240, "n": 4, "temperature": 0,
             "ignore_eos": True}
    thread, events = begin_stream(server, asked)
    assert http.delete("/v1/models/a").status_code == 200
    thread.join(5 * PATIENCE)
    assert not thread.is_alive()
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_swaps_under_load(server, http):
    """Clients that never stop while models come and go: every reply is whole, from either model."""
    texts = {text_of(http, **ASKED)}
    load(http, "b")
    texts.add(text_of(http, model="b", **ASKED))
    http.delete("/v1/models/b")
    stop, failures = threading.Event(), []

    def run():
        with server.client() as own:
            while not stop.is_set():
                reply = own.post("/v1/completions", json=ASKED)
                if reply.status_code != 200 or reply.json()["choices"][0]["text"] not in texts:
                    failures.append(reply.text)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(4):
        load(http, "ab"[i % 2], id="shakespeare")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    wait_until(lambda: len(memory(http)["models"]) == 1, 30)


def test_no_model_at_all(http):
    assert http.delete("/v1/models/shakespeare").status_code == 200
    assert ids(http) == []
    assert refused(http, ASKED, 404)["code"] == "model_not_found"
    assert http.get("/health").status_code == 200
    assert memory(http)["model"] is None
    assert http.get("/metrics").status_code == 200
    load(http, "a")
    assert text_of(http, **ASKED)


@pytest.mark.parametrize("model", ["nobody", "/etc/passwd", "../", ".", "", "a/../../x", "out",
                                   "out/passwd", "/", "x" * 5000, "a\u0001"])
def test_what_cannot_be_loaded(http, model):
    error = refused(http, {"model": model}, 404, LOAD)
    assert error["param"] == "model"


def test_bad_loads(http):
    assert refused(http, {"model": "broken"}, 400, LOAD)["param"] == "model"
    for name in ("a/b", "", "x=y", "a b", "x" * 200, ".."):
        assert refused(http, {"model": "a", "id": name}, 400, LOAD)["param"] == "id", name
    assert refused(http, {"model": "a", "path": "x"}, 400, LOAD)["param"] == "path"
    assert refused(http, {}, 400, LOAD)["param"] == "model"
    assert ids(http) == ["shakespeare"]


def test_from_a_job_to_a_model(server, http):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    file = client.files.create(file=("t.txt", b"steps=2\n"), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="configs/tiny_char", training_file=file.id,
                                         suffix="mine")
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded", 30)
    listed, = [model for model in http.get("/v1/models").json()["data"] if model["id"] == "mine"]
    assert listed["loaded"] is False
    assert client.models.retrieve("mine").id == "mine"
    assert refused(http, {"model": "mine", **ASKED}, 404)["code"] == "model_not_found"
    assert load(http, "mine")["loaded"]
    assert ids(http) == ["shakespeare", "mine"]
    assert text_of(http, model="mine", **ASKED) == text_of(http, **ASKED)
    again = client.fine_tuning.jobs.create(model="mine", training_file=file.id)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(again.id).status == "succeeded", 30)
    assert client.models.delete("mine").deleted
    assert http.get("/v1/models/mine").json()["loaded"] is False


def test_from_a_checkpoint_to_a_model(server, http, tmp_path):
    """While its job still runs; and a job that begins with it needs it no more once created."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    jobs = client.fine_tuning.jobs
    file = client.files.create(file=("t.txt", b"steps=2000 save=4 pause=0.05\n"),
                               purpose="fine-tune")
    job = jobs.create(model="configs/tiny_char", training_file=file.id, suffix="mine")
    wait_until(lambda: len(jobs.checkpoints.list(job.id).data) >= 2, 30)
    newest, oldest = [c.fine_tuned_model_checkpoint
                      for c in list(jobs.checkpoints.list(job.id))[-2:]]
    number = job.id.removeprefix("ftjob-")[:12]
    assert (newest, oldest) == (f"mine:{number}:ckpt-step-8", f"mine:{number}:ckpt-step-4")
    listed = client.models.retrieve(oldest)
    assert listed.id == oldest and listed.loaded is False
    assert load(http, oldest)["id"] == oldest
    assert text_of(http, model=oldest, **ASKED) == text_of(http, **ASKED)
    for name in (oldest + "0", oldest.replace("-4", "-04"), f"mine:{number}:ckpt-step-",
                 f"mine:{number}:ckpt-step-99999999999999999999", "mine"):
        assert refused(http, {"model": name}, 404, LOAD)["param"] == "model"
    again = jobs.create(model=newest, training_file=client.files.create(
        file=("t.txt", b"steps=2\n"), purpose="fine-tune").id)
    assert jobs.retrieve(again.id).status == "queued"
    checkpoint = tmp_path / "data" / "jobs" / job.id / "model" / "checkpoints" / "step-8"
    (checkpoint / "manifest.json").unlink()  # as while it is written, or removed
    assert newest not in [c.fine_tuned_model_checkpoint for c in jobs.checkpoints.list(job.id)]
    assert refused(http, {"model": newest}, 404, LOAD)["param"] == "model"
    shutil.rmtree(checkpoint)
    jobs.cancel(job.id)
    wait_until(lambda: jobs.retrieve(again.id).status == "succeeded", 30)
    start = tmp_path / "data" / "jobs" / again.id / "start"
    assert f"--init-from={start}" in (start.parent / "stdout.log").read_text()
    assert load(http, jobs.retrieve(again.id).fine_tuned_model)["loaded"]


def test_shutdown_while_loading(folder, tmp_path):
    server = gptd.Server("--models-dir", folder, "--data-dir", tmp_path / "data")
    with server.client() as http:
        thread = threading.Thread(target=lambda: quietly(http))
        thread.start()
        time.sleep(0.02)
        server.stop()
        thread.join()


def quietly(http):
    try:
        http.post(LOAD, json={"model": "a"})
    except httpx.TransportError:
        pass
