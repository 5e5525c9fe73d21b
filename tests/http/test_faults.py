"""The system refuses: allocations, file operations, threads and processes fail one at a time, at every
place where a server, a request or a training run asks for them. What a request meets ends that request,
with a message; the next one is answered; nothing leaks; no file is half-written under its final name;
and a run that failed goes on to the bits that it would have had.

A sample of the places by default, every way to each of them with --full. libcrypto's own first use of
itself is left out: it crashes where the allocator refuses, before a server serves (OpenSSL 3.0)."""

import errno
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

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
        """A request, from its connection to its end, once what was before it is over; None: there was no
        reply, or not all of it. `arm` says what is to fail."""
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
    # A model whose files cannot be read is the client's choice.
    if name == "load" and reply.status_code == 400:
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
