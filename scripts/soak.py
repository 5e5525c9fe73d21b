"""Mixed clients against a real server, for minutes or hours: see scripts/soak.sh.

Clients of every kind run at once, a thread each: streams, replies that must always be the same,
clients that leave, clients that read slowly, chat and tokens, nonsense, connections that say
nothing, uploads (whole, cut off, deleted), training jobs (finished, paused, cancelled; the model
then serves), models that are loaded, swapped and removed, and whoever polls memory and metrics.
A full queue's 429 is an answer; any other reply than the one that belongs to the request is a
failure.

They do so in rounds. After each all leave, and what the server then has is written down: resident
memory, bytes that no list explains, pages of the KV cache, descriptors, threads. The first round
warms up. What must hold at the end, against the end of that first round:

  pages         none in use after any round
  descriptors   as many as before, after every round
  threads       as many as before, after every round
  memory        resident and unexplained bytes grew by less than GROWTH_LIMIT, jobs not counted:
                each that was made stays listed, and takes JOB_BYTES

and that the server then ends by SIGTERM with exit code 0 and without complaints of a sanitizer.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import gptd

MIB = 1 << 20
GROWTH_LIMIT = 6 * MIB
JOB_BYTES = 16 << 10
TEXT = (gptd.ROOT / "README.md").read_text().encode("ascii", "ignore").decode()
OPTIONS = ("--max-seqs", 8, "--max-queue", 8, "--kv-cache", "8MiB", "--header-timeout", 5,
           "--send-timeout", 5, "--idle-timeout", 4, "--max-upload", "1MB", "--train-threads", 1)
JOBS = "/v1/fine_tuning/jobs"
TINY = {"batch_size": 2, "sequence_length": 32, "max_iters": 20, "save_interval": 5,
        "eval_interval": 10, "eval_iters": 1, "dropout": 0}
# What must be refused, and with which statuses.
NONSENSE = [
    ("/v1/completions", b"{", 400),
    ("/v1/completions", b'{"prompt": 5}', 400),
    ("/v1/completions", b'{"prompt": "A", "temprature": 1}', 400),
    ("/v1/completions", b'{"prompt": "A", "prompt": "B"}', 400),
    ("/v1/completions", b'{"prompt": "A", "max_tokens": 1e999}', 400),
    ("/v1/completions", b'{"prompt": "A", "max_tokens": 100000}', 400),
    ("/v1/completions", b'{"prompt": "A", "n": -1}', 400),
    ("/v1/completions", b'{"prompt": "A", "model": "nobody"}', 404),
    ("/v1/completions", b"[" * 5000, 400),
    ("/v1/completions", b'{"prompt": "' + b"x" * (5 << 20) + b'"}', 413),
    ("/v1/chat/completions", b'{"messages": []}', 400),
    ("/v1/tokenize", b'{"prompt": "\xff"}', 400),
    ("/v1/models/load", b'{"model": "../../etc"}', 404),
    (JOBS, b'{"model": "configs/tiny_char", "training_file": "file-none"}', 400),
    ("/v1/nowhere", b"{}", 404),
]
RAW_NONSENSE = [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n",
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100000 + b"\r\n\r\n"]


class Broken(Exception):
    """A reply that does not belong to its request."""


class Client:
    """One of them: its dice, its HTTP connection, how many rounds of its act it made."""

    def __init__(self, soak, seed):
        self.soak = soak
        self.dice = random.Random(seed)
        self.http = soak.server.client()

    def ask(self, method, path, *allowed, **more):
        """A request whose status must be one of `allowed`, or 429; None for that."""
        reply = self.http.request(method, path, **more)
        if reply.status_code == 429:
            self.soak.count("429")
            return None
        if reply.status_code not in (allowed or (200,)):
            raise Broken(f"{method} {path}: {reply.status_code} {reply.text[:300]}")
        return reply

    def prompt(self, room):
        """Some text that begins anywhere, of at most so many tokens: each is at least a byte."""
        begin = self.dice.randrange(len(TEXT) - room)
        return TEXT[begin:begin + self.dice.randint(1, room)]

    def body(self, **more):
        n = more.get("max_tokens", self.dice.randint(1, 60))
        return {"prompt": self.prompt(gptd.CONTEXT - n - 2), "max_tokens": n, "seed": 1,
                "ignore_eos": True, **more}

    def connect(self, receive_buffer=None):
        s = socket.socket()
        if receive_buffer:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        s.settimeout(60 * gptd.PATIENCE)
        s.connect(("127.0.0.1", self.soak.server.port))
        return s

    def post(self, body, receive_buffer=None):
        """Sends a completion by hand; the socket, from which the caller reads what it likes."""
        data = json.dumps(body).encode()
        s = self.connect(receive_buffer)
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(data) + data)
        return s

    def wait(self, low, high):
        self.soak.over.wait(self.dice.uniform(low, high))


# ---- what clients do, over and over ----


def stream(c):
    body = c.body(stream=True, stream_options={"include_usage": True}, n=c.dice.choice([1, 1, 2]))
    with c.http.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code == 429:
            c.soak.count("429")
            reply.read()
            return
        chunks = list(gptd.events(reply.iter_lines()))
    if chunks[-1]["usage"]["completion_tokens"] != body["n"] * body["max_tokens"]:
        raise Broken(f"a stream of {chunks[-1]['usage']} for {body}")


def same_bytes(c):
    body = {"prompt": "ROMEO:\n", "max_tokens": 40, "seed": 7, "logprobs": 1}
    reply = c.ask("POST", "/v1/completions", json=body)
    if not reply:
        return
    choice = json.dumps(reply.json()["choices"])
    if c.soak.expected.setdefault("same_bytes", choice) != choice:
        raise Broken(f"another reply to the same request: {choice[:300]}")


def leave(c):
    """After some of the reply, or none, or with a reset."""
    with c.post(c.body(stream=c.dice.random() < 0.7, max_tokens=200, n=4)) as s:
        for _ in range(c.dice.randrange(4)):
            s.recv(200)
        if c.dice.random() < 0.5:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.wait(0, 0.05)


def read_slowly(c):
    """To the end, or until patience ends: the server's (--send-timeout) or the client's."""
    with c.post(c.body(stream=True, max_tokens=200, n=4, logprobs=5), receive_buffer=2048) as s:
        end = time.monotonic() + c.dice.choice([0.5, 2, 8])
        while time.monotonic() < end and not c.soak.over.is_set() and s.recv(512):
            c.wait(0.005, 0.05)


def say_nothing(c):
    """Some connections, idle or in the middle of a header, for a while."""
    silent = [c.connect() for _ in range(20)]
    for s in silent[::2]:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    c.wait(0.1, 6)
    for s in silent:
        s.close()


def nonsense(c):
    path, body, status = c.dice.choice(NONSENSE)
    if len(body) > MIB and c.dice.random() < 0.8:
        return
    reply = c.ask("POST", path, status, content=body)
    if reply:
        gptd.check_error(reply)
    with c.connect() as s, contextlib.suppress(OSError):
        s.sendall(c.dice.choice(RAW_NONSENSE))
        s.shutdown(socket.SHUT_WR)
        while s.recv(4096):
            pass
    c.wait(0, 0.02)


def chat_and_tokens(c):
    said = [{"role": "user", "content": c.prompt(100)}]
    c.ask("POST", "/v1/chat/completions", json={"messages": said, "max_tokens": 10})
    tokens = c.ask("POST", "/v1/tokenize", json={"prompt": c.prompt(2000)}).json()["tokens"]
    c.ask("POST", "/v1/detokenize", json={"tokens": tokens})
    c.wait(0, 0.02)


def poll(c):
    for path in ("/v1/memory?history=1", "/metrics", "/health", "/ready", "/v1/models",
                 "/openapi.json", JOBS, "/v1/files"):
        c.ask("GET", path)
    c.ask("POST", "/v1/memory/plan", json={"model": "configs/150M"})
    c.wait(0, 0.1)


def upload(c):
    file = send_file(c, c.dice.randrange(1000, 300000))
    c.ask("GET", f"/v1/files/{file}/content")
    c.ask("DELETE", f"/v1/files/{file}")
    c.ask("GET", f"/v1/files/{file}", 404)
    with c.connect() as s:  # cut off
        s.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nContent-Type: "
                  b"multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; "
                  b'name="file"; filename="x.txt"\r\n\r\n' + b"x" * 5000)
    c.wait(0, 0.1)


def send_file(c, size):
    reply = c.ask("POST", "/v1/files", data={"purpose": "fine-tune"},
                  files={"file": ("x.txt", (TEXT * 20)[:size].encode())})
    return reply.json()["id"]


def job_state(c, job):
    return c.ask("GET", f"{JOBS}/{job}").json()


def wait_job(c, job, *states):
    """Until it is in one of these; cancelled when the round is over."""
    while (state := job_state(c, job))["status"] not in states:
        if state["status"] in ("failed", "cancelled", "succeeded"):
            if c.soak.over.is_set():
                return state
            raise Broken(f"a job that should be {states} is {state}")
        if c.soak.over.is_set():
            cancel(c, job)
        time.sleep(0.05)
    return state


def cancel(c, job):
    """400: it has ended meanwhile."""
    c.ask("POST", f"{JOBS}/{job}/cancel", 200, 400, 409)


def train(c):
    """A job to its end, or paused and resumed, or cancelled; its model serves for a moment."""
    file = send_file(c, 20000)
    fate = c.dice.choice(["end", "pause", "cancel"])
    iterations = 20 if fate == "end" else 2000
    job = c.ask("POST", JOBS, json={"model": "configs/tiny_char", "training_file": file,
                                    **TINY, "max_iters": iterations}).json()["id"]
    c.soak.count("jobs")
    c.ask("DELETE", f"/v1/files/{file}")
    if fate == "end":
        state = wait_job(c, job, "succeeded")
        if state["status"] == "succeeded":
            serve_briefly(c, state["fine_tuned_model"])
        return
    if wait_job(c, job, "running")["status"] != "running":
        return
    if fate == "pause" and not c.soak.over.is_set():
        c.wait(0.2, 1)
        c.ask("POST", f"{JOBS}/{job}/pause", 200)
        if wait_job(c, job, "paused")["status"] != "paused":
            return
        c.ask("POST", f"{JOBS}/{job}/resume", 200, 409)
        c.wait(0.2, 1)
    cancel(c, job)
    wait_job(c, job, "cancelled", "succeeded")


def serve_briefly(c, model):
    if c.ask("POST", "/v1/models/load", 200, json={"model": model}):
        c.ask("POST", "/v1/completions", json={"prompt": "A", "max_tokens": 5, "model": model})
        c.ask("DELETE", f"/v1/models/{model}")


def swap(c):
    """Loads a model beside the first, swaps it twice under requests, removes it."""
    loaded = False
    for name in ("a", "b", "a"):
        loaded = c.ask("POST", "/v1/models/load", json={"model": name, "id": "guest"}) or loaded
        if not loaded:  # another one is being loaded
            return
        with c.post({**c.body(max_tokens=100, stream=True), "model": "guest"}) as s:
            s.recv(100)
            c.ask("POST", "/v1/completions", json={**c.body(max_tokens=5), "model": "guest"})
    c.ask("DELETE", "/v1/models/guest")
    c.wait(0, 0.5)


ACTS = [stream, stream, stream, same_bytes, leave, leave, read_slowly, read_slowly, say_nothing,
        nonsense, chat_and_tokens, poll, upload, train, swap]


# ---- rounds ----


class Soak:
    """A server, and the rounds of its clients."""

    def __init__(self, folder, seed):
        models = Path(folder) / "models"
        for name in "ab":
            shutil.copytree(gptd.MODEL, models / name)
        self.server = gptd.Server(*OPTIONS, "--models-dir", models, "--data-dir",
                                  Path(folder) / "data")
        self.seed = seed
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        self.expected = {}
        self.failures = []

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def play(self, number, act):
        """A client's thread."""
        client = Client(self, self.seed * 1000 + number)
        try:
            while not self.over.is_set():
                act(client)
                self.count(act.__name__)
        except Exception:
            with self.lock:
                self.failures.append(f"{act.__name__}: {traceback.format_exc()}")
            self.over.set()
        finally:
            client.http.close()

    def round(self, seconds):
        """All clients for that long; then what the server has when all have left. None when one of
        them saw a failure."""
        self.over.clear()
        self.seed += 1
        threads = [threading.Thread(target=self.play, args=(i, act)) for i, act in enumerate(ACTS)]
        for thread in threads:
            thread.start()
        self.over.wait(seconds)
        self.over.set()
        for thread in threads:
            thread.join()
        return None if self.failures else self.sample_at_rest()

    def sample_at_rest(self):
        """When the last connection has been closed and the last step is over."""
        with self.server.client() as http:
            def rests():
                memory = gptd.memory(http)
                text = http.get("/metrics").text
                return ("gptd_http_connections 1\n" in text and "gptd_sequences_running 0" in text
                        and not memory["jobs"] and len(memory["models"]) == 1)
            try:
                gptd.wait_until(rests, 30, "that all clients are gone")
            except AssertionError:
                print(http.get("/metrics").text, gptd.memory(http), sep="\n")
                raise
            time.sleep(0.3)  # freed memory goes back, threads that ended are gone
            memory = gptd.memory(http)
            process = Path(f"/proc/{self.server.pid}")
            return {"rss_bytes": memory["process"]["rss_bytes"],
                    "unexplained_bytes": memory["process"]["unexplained_bytes"],
                    "heap_bytes": memory["process"]["heap_bytes"],
                    "pages_used": memory["kv_pages"]["used"],
                    "pages_reserved": memory["kv_pages"]["reserved"],
                    "descriptors": len(os.listdir(process / "fd")),
                    "threads": len(os.listdir(process / "task")),
                    "jobs": self.counts["jobs"]}

    def check_log(self):
        """A sanitizer's complaint ends the run; the lines that were read make room."""
        complaint = gptd.COMPLAINTS.search(self.server.output())
        if complaint:
            self.failures.append(self.server.output()[complaint.start():][:4000])
        else:
            os.truncate(self.server.log.name, 0)


def differences(first, last):
    """What did not stay flat, as lines to print."""
    out = [f"{name} in use: {last[name]}" for name in ("pages_used", "pages_reserved")
           if last[name]]
    out += [f"{name}: {last[name]}, were {first[name]}" for name in ("descriptors", "threads")
            if last[name] != first[name]]
    limit = GROWTH_LIMIT + JOB_BYTES * (last["jobs"] - first["jobs"])
    out += [f"{name} grew by {last[name] - first[name]:,}, more than {limit:,}"
            for name in ("rss_bytes", "unexplained_bytes")
            if not gptd.SANITIZED and last[name] - first[name] > limit]
    return out


def row(name, sample):
    print(f"{name:>8} {sample['rss_bytes'] / MIB:9.2f} {sample['heap_bytes'] / MIB:9.2f} "
          f"{sample['unexplained_bytes'] / MIB:12.2f} {sample['pages_used']:6} "
          f"{sample['descriptors']:12} {sample['threads']:8} {sample['jobs']:6}", flush=True)


def run(seconds, round_seconds, seed=1):
    """The whole of it; a list of what did not hold."""
    n_rounds = max(2, round(seconds / round_seconds))
    with tempfile.TemporaryDirectory(prefix="gptd-soak-") as folder:
        soak = Soak(folder, seed)
        print(f"{'round':>8} {'RSS MiB':>9} {'heap MiB':>9} {'unexplained':>12} {'pages':>6} "
              f"{'descriptors':>12} {'threads':>8} {'jobs':>6}")
        first, problems = None, []
        try:
            row("start", soak.sample_at_rest())
            for i in range(n_rounds):
                sample = soak.round(round_seconds)
                soak.check_log()
                problems = soak.failures
                if problems:
                    break
                row(str(i + 1), sample)
                first = first or sample
                problems = differences(first, sample)
                if problems:
                    break
            print(", ".join(f"{n} {what}" for what, n in sorted(soak.counts.items())))
        finally:
            if not soak.server.running():
                problems = [f"the server ended:\n{soak.server.output()[-4000:]}"]
            soak.server.stop()
        idle = [act.__name__ for act in ACTS if not soak.counts[act.__name__]]
        return problems or [f"no client got to the end of: {', '.join(idle)}"] * bool(idle)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--round", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1, help="of the clients' dice")
    arguments = parser.parse_args()
    problems = run(60 * arguments.minutes, arguments.round, arguments.seed)
    print("\n".join(problems) if problems else "flat")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
