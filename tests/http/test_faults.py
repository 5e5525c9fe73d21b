"""The system refuses: allocations, file operations, threads and processes fail one at a time, at
every place where a server, a request or a training run asks for them. What a request meets ends
that request, with a message; the next one is answered; nothing leaks; no file is half-written under
its final name; and a run that failed goes on to the bits that it would have had.

A sample of the places by default, every way to each of them with --full. libcrypto's own first use
of itself is left out: where the allocator refuses it crashes, before a server serves (OpenSSL 3.0).
"""

import errno
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from gptd import BINARY, MODEL, PATIENCE, ROOT, SANITIZED, Server, check_error, wait_until

sys.path.insert(0, str(ROOT / "tests"))
from faults.control import FILE, KINDS, MEMORY, PROCESS, Faults, descriptors  # noqa: E402

pytestmark = pytest.mark.skipif(SANITIZED, reason="sanitizers have the allocator for themselves")

GOLDEN = ROOT / "tests" / "golden" / "llama"
NOT_OURS = "OPENSSL_init_crypto"
# Which errno a call of the kind fails with.
ERRNO = {MEMORY: errno.ENOMEM, FILE: errno.ENOSPC, PROCESS: errno.EAGAIN}


@pytest.fixture(scope="module")
def full(request):
    return request.config.getoption("--full")


# ---- A server, and what may be asked of it ----

def completion(**more):
    return lambda http: http.post("/v1/completions", json={"prompt": "A", "max_tokens": 4, **more})


def chat(**more):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **more}
    return lambda http: http.post("/v1/chat/completions", json=body)


def upload(http):
    return http.post("/v1/files", files={"file": ("a.txt", b"some text. " * 1000)},
                     data={"purpose": "fine-tune"})


REQUESTS = {
    "completion": completion(n=2, logprobs=2, temperature=1, stop=["x"]),
    "stream": completion(stream=True, stream_options={"include_usage": True}),
    "chat": chat(),
    "chat_stream": chat(stream=True),
    "tokenize": lambda http: http.post("/v1/tokenize", json={"prompt": "hello there"}),
    "detokenize": lambda http: http.post("/v1/detokenize", json={"tokens": [5, 6, 7]}),
    "memory": lambda http: http.get("/v1/memory?history=1"),
    "models": lambda http: http.get("/v1/models"),
    "metrics": lambda http: http.get("/metrics"),
    "openapi": lambda http: http.get("/openapi.json"),
    "page": lambda http: http.get("/page/page.js"),
    "upload": upload,
    "files": lambda http: http.get("/v1/files"),
    "jobs": lambda http: http.get("/v1/fine_tuning/jobs"),
    "load": lambda http: http.post("/v1/models/load", json={"model": "llama"}),
    "unload": lambda http: http.delete("/v1/models/llama"),
}


class Failing:
    """A server whose calls can be made to fail."""

    def __init__(self, folder):
        self.faults = Faults("serve")
        self.folder = folder
        self.server = Server("--data-dir", folder, "--models-dir", GOLDEN.parent,
                             env=self.faults.environment)

    def http(self):
        """Without kept connections: what a connection takes is part of each request."""
        return httpx.Client(base_url=self.server.url, timeout=10 * PATIENCE)

    def prepare(self, name):
        """What the request needs to find, and what it must not."""
        if name not in ("load", "unload", "upload"):
            return
        with self.http() as http:
            if name == "load":
                http.delete("/v1/models/llama")
            if name == "unload":
                http.post("/v1/models/load", json={"model": "llama"})
            for file in http.get("/v1/files").json()["data"] if name == "upload" else []:
                assert http.delete("/v1/files/" + file["id"]).status_code == 200

    def ask(self, name, arm=lambda: None):
        """A request, from its connection to its end, once what was before it is over; None: there
        was no reply, or not all of it. `arm` says what is to fail."""
        with self.http() as http:
            self.faults.blocks()
            arm()
            try:
                reply = REQUESTS[name](http)
            except httpx.TransportError:
                reply = None
        self.faults.blocks()
        self.faults.disarm()
        return reply

    def held(self):
        """Blocks of the allocator, and descriptors."""
        return self.faults.blocks(), descriptors(self.server.pid)


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    made = Failing(tmp_path_factory.mktemp("failing") / "data")
    yield made
    made.server.stop()
    made.faults.close()


def check_reply(name, reply):
    """A reply as it should be, or an error that says so: of the server's, not the client's."""
    if reply.status_code == 200:
        assert not name.endswith("stream") or reply.text.endswith("data: [DONE]\n\n")
        return
    error = check_error(reply)
    # libmicrohttpd drops a part's name or filename where it has no memory for it.
    if name == "upload" and reply.status_code == 400 and ("''" in error["message"] or
                                                          "filename" in error["message"]):
        return
    # A model whose files cannot be read, or found, is the client's choice.
    if name == "load" and reply.status_code in (400, 404):
        assert error["param"] == "model"
        return
    assert reply.status_code in (500, 503, 507), reply.text


def fail_one(failing, name, kind, number):
    """The call fails; then everything is as it was. True when there was no reply at all."""
    faults = failing.faults
    for _ in range(3):  # once may be a cache that fills
        failing.prepare(name)
        before = failing.held()
        reply = failing.ask(name, lambda: faults.arm(kind, number, error=ERRNO[kind]))
        where = f"{name}, call {number} of kind {kind}:\n{faults.trace()}"
        assert failing.server.running(), where + failing.server.output()[-2000:]
        if reply is not None:
            check_reply(name, reply)
        failing.prepare(name)
        again = failing.ask(name)
        assert again is not None and again.status_code == 200, (where, again)
        failing.prepare(name)
        after = failing.held()
        if all(now <= then for now, then in zip(after, before)):
            return reply is None
    raise AssertionError(f"(blocks, descriptors) went from {before} to {after}: {where}")


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_survives_any_failure(failing, full, name):
    for _ in range(2):  # what only the first one makes
        failing.prepare(name)
        failing.ask(name)
    n_closed = 0
    for kind in KINDS.values():
        failing.prepare(name)
        reply = failing.ask(name, lambda: failing.faults.record(kind))
        assert reply.status_code == 200, reply.text
        n, numbers = failing.faults.calls_to_fail(every=1000, most=None if full else 2)
        print(f"{name}, kind {kind}: {len(numbers)} of {n} calls")
        n_closed += sum(fail_one(failing, name, kind, number) for number in numbers)
    # What accepting a connection takes is libmicrohttpd's, which has no reply without it.
    assert n_closed <= 6


# ---- Commands ----

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16, "batch_size": 2, "max_iters": 3,
        "save_interval": 1, "eval_interval": 2, "eval_iters": 1, "dropout": 0.1}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with data to train from and a config; its output goes to `out`."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "data.txt").write_text("the quick brown fox jumps over the lazy dog. " * 300)
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def train(work, *more):
    return ["train", "--config", work / "config.json", "--model-name", "m", "--input",
            work / "data.txt", "--out-dir", work / "out", "--threads", 1, "--seed", 1,
            "--dtype", "f32", "--micro-batch-size", 2, *more]


COMMANDS = {
    "train": train,
    "serve": lambda work: ["serve", "--model", GOLDEN, "--port", 0, "--data-dir", work / "out"],
    "generate": lambda work: ["generate", "--model", MODEL, "--prompt", "A", "--max-new-tokens", 1,
                              "--threads", 1],
    "convert": lambda work: ["convert", "--model", GOLDEN, "--output", work / "out"],
    "gguf": lambda work: ["convert", "--model", GOLDEN, "--format", "gguf", "--output",
                          work / "out" / "model.gguf"],
    "data": lambda work: ["data", "--input", work / "data.txt", "--tokenizer", MODEL, "--output",
                          work / "out"],
    "tokenizer": lambda work: ["tokenizer", "train", "--input", work / "data.txt",
                               "--vocab-size", 300, "--output", work / "out"],
    "plan": lambda work: ["plan", "--config", work / "config.json"],
    "inspect": lambda work: ["inspect", GOLDEN],
}


def execute(arguments, environment):
    """(exit code, output). A server is asked to end as soon as it listens."""
    child = subprocess.Popen([BINARY, *map(str, arguments)], env=environment, cwd=ROOT, text=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT)
    output = ""
    for line in child.stdout:
        output += line
        if "listening on " in line:
            child.send_signal(signal.SIGTERM)
    return child.wait(60 * PATIENCE), output


def check_files(folder):
    """Whatever has its final name is whole."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("*.safetensors"):
        raw = path.read_bytes()
        header = int.from_bytes(raw[:8], "little")
        tensors = json.loads(raw[8:8 + header])
        tensors.pop("__metadata__", None)
        assert len(raw) == 8 + header + max(t["data_offsets"][1] for t in tensors.values()), path
    for path in folder.rglob("*.gguf"):
        assert execute(["inspect", path], os.environ)[0] == 0, path


def fail_command(faults, name, work, kind, number, sticky=False):
    """Runs the command into the failure. It ends as one that was done, or says why not; True if it
    failed."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    faults.arm(kind, number, 2**62 if sticky else number, error=ERRNO[kind])
    code, output = execute(COMMANDS[name](work), faults.environment)
    faults.disarm()
    trace = faults.trace()
    if NOT_OURS in trace and code == -signal.SIGSEGV:
        return False
    where = f"{name}, call {number} of kind {kind}: exit status {code}\n{trace}{output[-2000:]}"
    assert code in (0, 1, 2), where
    if code:
        assert f"gptd {COMMANDS[name](work)[0]}: " in output, where
    check_files(out)
    return code != 0


SAMPLE = {"train": 3, "serve": 5}  # of each kind; 2 of the rest


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_fails_with_a_line(work, full, name):
    arguments = COMMANDS[name](work)
    with Faults(arguments[0]) as faults:
        for kind in KINDS.values():
            shutil.rmtree(work / "out", ignore_errors=True)
            (work / "out").mkdir()
            faults.record(kind)
            code, output = execute(arguments, faults.environment)
            assert code == 0, output
            n, numbers = faults.calls_to_fail(most=400 if full else SAMPLE.get(name, 2))
            failed = sum(fail_command(faults, name, work, kind, number) for number in numbers)
            print(f"{name}, kind {kind}: {len(numbers)} of {n} calls, {failed} ended it")


@pytest.mark.parametrize("sticky", [False, True])
def test_a_run_that_failed_resumes_to_the_same_bits(work, full, sticky):
    """A disk that is full once, or from then on, while a checkpoint is written."""
    with Faults("train") as faults:
        shutil.rmtree(work / "out", ignore_errors=True)
        faults.record(FILE)
        assert execute(train(work), faults.environment)[0] == 0
        _, numbers = faults.calls_to_fail(most=100 if full else 3, seed=2)
        shutil.rmtree(work / "whole", ignore_errors=True)
        shutil.copytree(work / "out" / "m", work / "whole", symlinks=True)
        for number in numbers:
            fail_command(faults, "train", work, FILE, number, sticky)
            where = f"call {number}:\n{faults.trace()}"
            code, output = execute(train(work, "--resume"), os.environ)
            assert code == 0, where + output
            assert filecmp.cmp(work / "out" / "m" / "model.safetensors",
                               work / "whole" / "model.safetensors", shallow=False), where


# ---- Situations ----

def test_a_model_is_cut_or_written_over_while_it_loads(tmp_path):
    """Weights are read through a map, and to read where a file has shrunk is a SIGBUS."""
    folder = tmp_path / "models" / "m"
    shutil.copytree(MODEL, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    stop = threading.Event()

    def cut():
        while not stop.is_set():
            os.truncate(weights, 70000)
            weights.write_bytes(whole)

    server = Server("--models-dir", tmp_path / "models", model=GOLDEN)
    writer = threading.Thread(target=cut)
    writer.start()
    said = set()
    try:
        with server.client() as http:
            for _ in range(60):
                reply = http.post("/v1/models/load", json={"model": "m"})
                assert server.running(), server.output()
                if reply.status_code == 200:
                    http.delete("/v1/models/m")
                else:
                    assert reply.status_code == 400, reply.text
                    said.add(check_error(reply)["message"].split(": ", 1)[-1][:40])
    finally:
        stop.set()
        writer.join()
    assert said
    with server.client() as http:
        assert http.post("/v1/models/load", json={"model": "m"}).status_code == 200
    server.stop()


def wait_job(http, job):
    ended = ("succeeded", "failed", "cancelled")
    url = f"/v1/fine_tuning/jobs/{job}"
    wait_until(lambda: http.get(url).json()["status"] in ended, 30, "the job")
    return http.get(url).json()


@pytest.mark.parametrize("call", [1, 2])
def test_a_job_whose_process_cannot_be_made(tmp_path, call):
    """No pipe, then no process: the job says so, and the next one runs."""
    (tmp_path / "tiny.json").write_text(json.dumps({**TINY, "max_iters": 1}))
    with Faults("serve") as faults:
        server = Server("--data-dir", tmp_path / "data", "--configs-dir", tmp_path,
                        env=faults.environment)
        with server.client() as http:
            file = upload(http).json()["id"]
            body = {"model": "configs/tiny", "training_file": file}
            # The request's own thread is the first call.
            faults.arm(PROCESS, call + 1, error=errno.EAGAIN)
            job = http.post("/v1/fine_tuning/jobs", json=body).json()["id"]
            wait_until(lambda: faults.get("failed") == 1, 10, "the failure")
            faults.disarm()
            refused = wait_job(http, job)
            assert refused["status"] == "failed", refused
            assert "temporarily unavailable" in refused["error"]["message"], refused
            job = http.post("/v1/fine_tuning/jobs", json=body).json()["id"]
            ended = wait_job(http, job)
            assert ended["status"] == "succeeded", server.output()
            assert ended["trained_tokens"] == TINY["batch_size"] * TINY["block_size"]  # of one step
        server.stop()


def test_a_full_disk_is_507(failing):
    """From any of an upload's operations on. No file of it gets its name."""
    faults = failing.faults
    failing.prepare("upload")
    assert failing.ask("upload").status_code == 200
    failing.prepare("upload")
    def kept():
        return sorted(p for p in failing.folder.rglob("*") if not p.name.startswith("upload-"))
    before = kept()
    failing.ask("upload", lambda: faults.record(FILE))
    _, numbers = faults.calls_to_fail()
    failing.prepare("upload")
    statuses = set()
    for number in numbers:
        reply = failing.ask("upload", lambda: faults.arm(FILE, number, 2**62, errno.ENOSPC))
        statuses.add(reply.status_code)
        if reply.status_code == 507:
            error = check_error(reply)
            assert error["code"] == "disk_full" and "No room" in error["message"]
            assert str(failing.folder) not in error["message"], error
        failing.prepare("upload")
    assert 507 in statuses and statuses <= {200, 500, 503, 507}, statuses
    # The disk has room again. (What could not even be removed is swept when the server starts.)
    assert failing.ask("upload").status_code == 200
    failing.prepare("upload")
    assert kept() == before


def test_a_data_folder_that_cannot_be_written(tmp_path):
    """As root, whom permissions do not stop, meets it: a file is in the folder's place."""
    (tmp_path / "data").write_text("not a folder")
    server = Server("--data-dir", tmp_path / "data")
    with server.client() as http:
        reply = upload(http)
        assert reply.status_code >= 500, reply.text
        check_error(reply)
        assert completion()(http).status_code == 200
    server.stop()
