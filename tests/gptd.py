"""What the black-box tests share: a gptd server as a child process, and small helpers.

The binary comes from GPTD_BINARY (default build/gptd), so that the same tests run against the
sanitizers' builds. Every server logs to a file; stopping one checks how it ended: not by a signal,
without a leak, a race or undefined behaviour in its log.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
BINARY = os.environ.get("GPTD_BINARY", str(ROOT / "build" / "gptd"))
MODEL = ROOT / "models" / "shakespeare"
CONFIG = json.loads((MODEL / "config.json").read_text())
CONTEXT = CONFIG["max_position_embeddings"]

SANITIZED = "/address/" in BINARY or "/thread/" in BINARY
# How much more patience a sanitized server needs; a shared machine wants some anyway.
PATIENCE = 8 if SANITIZED else 2

COMPLAINTS = re.compile(
    r"ERROR: (Address|Leak)Sanitizer|WARNING: ThreadSanitizer|runtime error:|assertion failed",
    re.I)


def command(*arguments):
    """The command line that runs gptd with these arguments."""
    prefix = []
    if "/thread/" in BINARY and shutil.which("setarch"):
        # TSan's shadow cannot be mapped where the kernel randomizes addresses widely.
        if subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0:
            prefix = ["setarch", "-R"]
    return [*prefix, BINARY, *map(str, arguments)]


def run(*arguments, timeout=60, **kwargs):
    """Runs gptd to its end; returns the CompletedProcess with text output."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT,
                          timeout=timeout * PATIENCE, stdin=subprocess.DEVNULL, **kwargs)


class Server:
    """`gptd serve` on a free port of 127.0.0.1. Requests that tests write by hand say `Host: x`."""

    def __init__(self, *arguments, model=MODEL, wait=True, verify=True, **popen):
        self.verify = verify  # httpx's: of a server with TLS
        self.log = tempfile.NamedTemporaryFile("w+", prefix="gptd-", suffix=".log", delete=False)
        self.process = subprocess.Popen(
            command("serve", "--model", model, "--host", "127.0.0.1", "--port", 0,
                    "--allowed-host", "x", *arguments),
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, **popen)
        self.pid = self.process.pid
        self.url = None
        if wait:
            self.wait_ready()

    def output(self):
        return Path(self.log.name).read_text(errors="replace")

    def wait_listening(self, timeout=30):
        end = time.monotonic() + timeout * PATIENCE
        while time.monotonic() < end:
            found = re.search(r"listening on (https?://[0-9.]+:(\d+))", self.output())
            if found:
                self.url, self.port = found.group(1), int(found.group(2))
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"gptd did not start:\n{self.output()}")

    def wait_ready(self, timeout=30):
        self.wait_listening(timeout)
        end = time.monotonic() + timeout * PATIENCE
        while time.monotonic() < end:
            try:
                reply = httpx.get(self.url + "/ready", verify=self.verify, timeout=5 * PATIENCE)
                if reply.status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"gptd was not ready in time:\n{self.output()}")

    def running(self):
        return self.process.poll() is None

    def client(self, **kwargs):
        return httpx.Client(base_url=self.url, timeout=60 * PATIENCE, verify=self.verify, **kwargs)

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait()

    def stop(self, timeout=30, number=signal.SIGTERM):
        """The signal, then everything that must be true of a server's end."""
        self.process.send_signal(number)
        self.check_end(timeout)

    def check_end(self, timeout=30):
        """The server, asked to end before, does so, and without complaints."""
        try:
            status = self.process.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"gptd did not end in time:\n{self.output()[-4000:]}")
        output = self.output()
        complaint = COMPLAINTS.search(output)
        assert not complaint, output[complaint.start():][:8000]
        assert status == 0, f"gptd ended with {status}:\n{output[-4000:]}"
        os.unlink(self.log.name)


def complete(http, path="/v1/completions", **body):
    """POSTs a completion that must succeed; returns its JSON."""
    reply = http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def text_of(http, **body):
    return complete(http, **body)["choices"][0]["text"]


def refused(http, body, status=400, path="/v1/completions"):
    """POSTs what must be refused (a dict, or raw bytes); returns the error object."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, (reply.status_code, reply.text)
    return check_error(reply)


def check_error(reply):
    """OpenAI's error shape; returns the error object."""
    assert reply.headers["content-type"].startswith("application/json")
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"] and isinstance(error["message"], str)
    assert error["type"] and isinstance(error["type"], str)
    return error


def events(lines):
    """The JSON objects of a stream of SSE lines, up to [DONE], which must be the last. Comments are
    signs of life."""
    done = False
    for line in lines:
        if not line or line.startswith(":"):
            continue
        assert not done, f"after [DONE]: {line!r}"
        assert line.startswith("data: "), line
        if line == "data: [DONE]":
            done = True
            continue
        yield json.loads(line[len("data: "):])
    assert done, "the stream ended without [DONE]"


def stream(http, path="/v1/completions", **body):
    """All events of a streamed completion."""
    with http.stream("POST", path, json={**body, "stream": True}) as reply:
        if reply.status_code != 200:
            raise AssertionError(f"{reply.status_code}: {reply.read()!r}")
        assert reply.headers["content-type"].startswith("text/event-stream")
        return list(events(reply.iter_lines()))


def joined(chunks, index=0):
    """The text that a choice's chunks add up to."""
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]
                   if choice["index"] == index)


def memory(http):
    reply = http.get("/v1/memory")
    assert reply.status_code == 200
    return reply.json()


def wait_until(condition, timeout=10, what="the condition"):
    end = time.monotonic() + timeout * PATIENCE
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {timeout * PATIENCE} s")
