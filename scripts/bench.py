#!/usr/bin/env python3
"""Measures gptd over HTTP, the way a client meets it: `make bench`, `make bench MODEL=path`.

    bench.py --model models/shakespeare [--json out.json] [-- more options of gptd serve]
    bench.py --url http://127.0.0.1:8081 --context 2048     some other server of the same API

What it prints are medians over --runs (at least 5) of
  load        start of the process until /ready says yes
  prompt      tokens a second of a prompt of 512 tokens (or what the context holds), never seen
              before
  decode      tokens a second after the first, one client
  clients     1, 4 and 16 streaming clients at once: tokens a second in total, time between tokens
              (p50, p99), time to first token
  overhead    what HTTP adds: a trivial route's round trip, and the first token's time at the client
              less the same in the engine (from /metrics)
  cpu         64 streaming clients: processor time of the server's threads that do not compute (all
              but the engine's and the device's), as a share of the cores and for each token; and
              that of this client, which takes it from the same cores

The client reads sockets in one thread and counts events without parsing them, so that on a small
machine it takes as little as it can from the server. Standard library only.
"""

import argparse
import json
import os
import random
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVENT = b'data: {'


class Stream:
    """One streaming completion on a socket of its own, and when each of its events came."""

    def __init__(self, address, body):
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tail = b""
        self.times = []
        self.begin = time.perf_counter()
        self.send(body)

    def send(self, body):
        data = json.dumps({**body, "stream": True}).encode()
        self.socket.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    def read(self):
        """True until the stream has ended."""
        data = self.socket.recv(1 << 16)
        now = time.perf_counter()
        if not data:
            self.socket.close()
            if b"[DONE]" not in self.tail:
                raise RuntimeError(f"a stream broke off: {self.tail[-500:]!r}")
            return False
        # An event whose marker is cut in two is counted with its second part.
        seen = self.tail[-len(EVENT) + 1:] + data
        self.times += [now] * seen.count(EVENT)
        self.tail = (self.tail + data)[-2000:]
        return True


def run_streams(address, bodies):
    """All at once; returns the finished streams."""
    streams = [Stream(address, body) for body in bodies]
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        waiting = len(streams)
        while waiting:
            for key, _ in selector.select():
                selected = key.fileobj
                if key.data.read():
                    continue
                selector.unregister(selected)
                waiting -= 1
    return streams


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))]


class Target:
    """The server under test: where it listens, and how its requests are made unique."""

    def __init__(self, url, context, vocabulary, metrics):
        parts = urllib.parse.urlsplit(url)
        self.url = url
        self.address = (parts.hostname, parts.port)
        self.context = context
        self.dice = random.Random(0)
        self.vocabulary = vocabulary
        self.metrics = metrics

    def get(self, path):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, timeout=60) as reply:
            return reply.read()

    def body(self, n_prompt, max_tokens):
        """A prompt of random token ids: nothing that a prefix cache could know."""
        prompt = [self.dice.randrange(10, self.vocabulary) for _ in range(n_prompt)]
        return {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}

    def engine_first_token(self):
        """Sum and count of the engine's own time to first token, in seconds."""
        text = self.get("/metrics").decode()
        name = "gptd_time_to_first_token_seconds"
        return tuple(float(re.search(rf"^{name}_{what} (\S+)$", text, re.M).group(1))
                     for what in ("sum", "count"))


def bench_prompt(target, runs):
    n = min(512, target.context - 2)
    times = []
    for i in range(runs + 1):
        (stream,) = run_streams(target.address, [target.body(n, 1)])
        if i:  # the first one warms up
            times.append(stream.times[0] - stream.begin)
    return {"prompt_tokens": n, "tokens_per_s": n / statistics.median(times),
            "seconds": statistics.median(times)}


def bench_clients(target, runs, n_clients):
    n_tokens = min(128, target.context - 34)
    totals, gaps, firsts, alone = [], [], [], []
    for i in range(runs + 1):
        begin = time.perf_counter()
        streams = run_streams(target.address,
                              [target.body(32, n_tokens) for _ in range(n_clients)])
        seconds = time.perf_counter() - begin
        if i == 0:
            continue
        totals.append(n_clients * n_tokens / seconds)
        firsts += [stream.times[0] - stream.begin for stream in streams]
        for stream in streams:
            gaps += [b - a for a, b in zip(stream.times, stream.times[1:])]
            alone.append((n_tokens - 1) / (stream.times[-1] - stream.times[0]))
    return {"clients": n_clients, "tokens_each": n_tokens,
            "total_tokens_per_s": statistics.median(totals),
            "decode_tokens_per_s": statistics.median(alone),
            "inter_token_p50_ms": 1e3 * percentile(gaps, 50),
            "inter_token_p99_ms": 1e3 * percentile(gaps, 99),
            "first_token_p50_ms": 1e3 * percentile(firsts, 50)}


def bench_overhead(target, runs):
    with socket.create_connection(target.address) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(200 * runs):
            begin = time.perf_counter()
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            s.recv(1 << 16)
            trips.append(time.perf_counter() - begin)
    result = {"health_round_trip_ms": 1e3 * statistics.median(trips)}
    if target.metrics:
        added = []
        for _ in range(20 * runs):
            before = target.engine_first_token()
            (stream,) = run_streams(target.address, [target.body(1, 1)])
            after = target.engine_first_token()
            if after[1] == before[1] + 1:
                added.append(stream.times[0] - stream.begin - (after[0] - before[0]))
        result["added_to_first_token_ms"] = 1e3 * statistics.median(added)
    return result


def cpu_seconds(pid):
    """Processor time of a process's threads, by their name."""
    seconds = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            spent = int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:  # it ended
            continue
        seconds[name] = seconds.get(name, 0) + spent
    return seconds


def bench_cpu(target, pid, runs, n_clients=64):
    n_tokens = min(128, target.context - 34)
    shares, each, device, client = [], [], [], []
    for i in range(runs + 1):
        before, begin, own = cpu_seconds(pid), time.perf_counter(), time.process_time()
        run_streams(target.address, [target.body(32, n_tokens) for _ in range(n_clients)])
        wall, after = time.perf_counter() - begin, cpu_seconds(pid)
        own = time.process_time() - own
        if i == 0:
            continue
        spent = {name: after[name] - before.get(name, 0) for name in after}
        computing = spent.pop("engine") + spent.pop("pool", 0)
        cores = wall * os.cpu_count()
        shares.append(100 * sum(spent.values()) / cores)
        device.append(100 * computing / cores)
        each.append(1e6 * sum(spent.values()) / (n_clients * n_tokens))
        client.append(1e6 * own / (n_clients * n_tokens))
    return {"clients": n_clients, "outside_device_percent": statistics.median(shares),
            "outside_device_us_per_token": statistics.median(each),
            "device_percent": statistics.median(device),
            "client_us_per_token": statistics.median(client)}


def start(arguments, model, *more):
    """A gptd on a free port; returns process, URL and the seconds until it was ready."""
    log = tempfile.NamedTemporaryFile("w+", suffix=".log")
    begin = time.perf_counter()
    process = subprocess.Popen([arguments.binary, "serve", "--model", model, "--host",
                                "127.0.0.1", "--port", "0", *arguments.more, *more],
                               stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    url = None
    while time.perf_counter() - begin < 600:
        text = Path(log.name).read_text()
        found = url or re.search(r"listening on (http://[0-9.:]+)", text)
        if found and not url:
            url = found.group(1)
        if url:
            try:
                Target(url, 0, 0, False).get("/ready")
                return process, url, time.perf_counter() - begin
            except OSError:
                pass
        if process.poll() is not None:
            break
        time.sleep(0.001)
    process.kill()
    process.wait()
    raise SystemExit(f"bench: {arguments.binary} did not start:\n{Path(log.name).read_text()}")


def stop(process):
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def describe(url):
    """What the server says about itself: context, vocabulary, device."""
    target = Target(url, 0, 0, False)
    entry = json.loads(target.get("/v1/models"))["data"][0]
    text = target.get("/metrics").decode()
    device = re.search(r'^gptd_build_info\{.*device="([^"]*)"', text, re.M)
    return entry, device.group(1) if device else "?"


def print_table(result):
    print(f"{result['model']} on {result['device']}, medians of {result['runs']} runs\n")
    if "load_seconds" in result:
        print(f"  load                        {1e3 * result['load_seconds']:10.0f} ms")
    prompt = result["prompt"]
    print(f"  prompt ({prompt['prompt_tokens']} tokens)         "
          f"{prompt['tokens_per_s']:10.0f} tok/s")
    decode = result["clients"][0]["decode_tokens_per_s"]
    print(f"  decode, one client          {decode:10.1f} tok/s")
    for name, value in result["overhead"].items():
        print(f"  {name.replace('_', ' ').removesuffix(' ms'):27} {value:10.3f} ms")
    print("\n  clients   total tok/s   between tokens p50 / p99 ms   first token ms")
    for row in result["clients"]:
        print(f"  {row['clients']:7}   {row['total_tokens_per_s']:11.1f}   "
              f"{row['inter_token_p50_ms']:15.2f} / {row['inter_token_p99_ms']:9.2f}   "
              f"{row['first_token_p50_ms']:14.2f}")
    if "cpu" in result:
        cpu = result["cpu"]
        print(f"\n  {cpu['clients']} clients: {cpu['outside_device_percent']:.1f} % of the cores "
              f"outside of the device ({cpu['outside_device_us_per_token']:.1f} us a token), "
              f"{cpu['device_percent']:.1f} % in it; this client took "
              f"{cpu['client_us_per_token']:.1f} us a token")


def report(result, table, json_path):
    """Prints the table (json_path -: the figures) and writes the figures to json_path, if any."""
    text = json.dumps(result, indent=2) + "\n"
    if json_path == "-":
        sys.stdout.write(text)
        return
    table(result)
    if json_path:
        Path(json_path).write_text(text)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "models" / "shakespeare"))
    parser.add_argument("--binary", default=str(ROOT / "build" / "gptd"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    parser.add_argument("--url", help="measure this running server instead of starting gptd")
    parser.add_argument("--context", type=int, default=2048, help="of the server at --url")
    parser.add_argument("--vocabulary", type=int, default=1000,
                        help="of the server at --url: prompts are made of token ids below this")
    parser.add_argument("more", nargs="*", help="options of gptd serve, after --")
    return parser.parse_args()


def measure(arguments, target, result):
    result["prompt"] = bench_prompt(target, arguments.runs)
    result["clients"] = [bench_clients(target, arguments.runs, n) for n in (1, 4, 16)]
    result["overhead"] = bench_overhead(target, arguments.runs)


def main():
    arguments = parse_arguments()
    result = {"model": arguments.model, "runs": arguments.runs, "cores": os.cpu_count()}
    if arguments.url:
        result["device"] = arguments.url
        measure(arguments, Target(arguments.url, arguments.context, arguments.vocabulary, False),
                result)
    else:
        loads = []
        for _ in range(arguments.runs - 1):
            process, _, seconds = start(arguments, arguments.model)
            stop(process)
            loads.append(seconds)
        process, url, seconds = start(arguments, arguments.model)
        try:
            result["load_seconds"] = statistics.median([*loads, seconds])
            entry, result["device"] = describe(url)
            measure(arguments, Target(url, entry["max_model_len"], entry["vocab_size"], True),
                    result)
        finally:
            stop(process)
        process, url, _ = start(arguments, arguments.model, "--max-seqs", "64")
        try:
            target = Target(url, entry["max_model_len"], entry["vocab_size"], True)
            result["cpu"] = bench_cpu(target, process.pid, arguments.runs)
        finally:
            stop(process)
    report(result, print_table, arguments.json)


if __name__ == "__main__":
    main()
