#!/usr/bin/env python3
"""Measures gptd under requests that come when they come: an open loop beside bench.py's closed one.

    bench_open.py --model models/shakespeare --rates 5 20 80 [--json out.json] [-- options of serve]
    bench_open.py --url http://127.0.0.1:8081 --rates 1 2 4

At each rate (requests a second) arrivals are drawn beforehand, a Poisson process from --seed, and
held to whether or not the server keeps up: a slow reply delays nobody's question. All times count
from when a request was to begin, not from when the client got to send it, so that a server that
stands still is charged with everyone who would have come meanwhile ("coordinated omission"). What
the table shows for each rate:

  finished, refused, failed    replies that were whole; 429 and 503; anything else
  first token                  from the intended arrival: median, 99th percentile, longest, in ms
  between tokens               the same, of all gaps of all replies
  late                         how far behind its own schedule this client was at worst: where that
                               is not small beside the rest, the figures are the client's

One thread, sockets that do not block, standard library only.
"""

import argparse
import os
import random
import selectors
import socket
import time

from bench import ROOT, Stream, Target, describe, percentile, report, start, stop

GRACE_S = 60  # after the last arrival


class Arrival(Stream):
    """One request of the schedule; `begin` is when it was to begin."""

    def __init__(self, address, body, begin):
        self.body = body
        self.begin = begin
        self.tail = b""
        self.times = []
        self.outcome = None
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.socket.connect_ex(address)
        self.late = time.perf_counter() - begin

    def step(self, selector):
        """The socket is ready; False when this one is over, and `outcome` says how."""
        try:
            if self.body:
                self.send(self.body)
                self.body = None
                selector.modify(self.socket, selectors.EVENT_READ, self)
                return True
            if self.read():
                return True
            self.outcome = "finished"
        except (OSError, RuntimeError):
            status = self.tail[:12]
            self.outcome = "refused" if status in (b"HTTP/1.1 429", b"HTTP/1.1 503") else "failed"
        return False


def arrivals(rate, seconds, dice):
    """When requests come, in seconds from the beginning."""
    at = dice.expovariate(rate)
    while at < seconds:
        yield at
        at += dice.expovariate(rate)


def run_schedule(target, schedule, n_prompt, n_tokens):
    """Lets them come; the finished Arrivals. What is not over GRACE_S after the last has failed."""
    done, waiting = [], [(at, target.body(n_prompt, n_tokens)) for at in schedule]
    waiting.reverse()
    begin = time.perf_counter() + 0.1
    end = begin + (waiting[0][0] if waiting else 0) + GRACE_S
    with selectors.DefaultSelector() as selector:
        while (waiting or selector.get_map()) and time.perf_counter() < end:
            while waiting and begin + waiting[-1][0] <= time.perf_counter():
                at, body = waiting.pop()
                arrival = Arrival(target.address, body, begin + at)
                selector.register(arrival.socket, selectors.EVENT_WRITE, arrival)
            pause = begin + waiting[-1][0] - time.perf_counter() if waiting else 1
            for key, _ in selector.select(max(0, pause)):
                arrival = key.data
                if not arrival.step(selector):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    done.append(arrival)
        for key in list(selector.get_map().values()):
            key.data.outcome = "failed"
            done.append(key.data)
            key.fileobj.close()
    return done


def spread(values):
    """p50, p99 and maximum in ms; None where there are none."""
    if not values:
        return None
    return {"p50_ms": 1e3 * percentile(values, 50), "p99_ms": 1e3 * percentile(values, 99),
            "max_ms": 1e3 * max(values)}


def bench_rate(target, rate, arguments):
    dice = random.Random(f"{arguments.seed} {rate}")
    schedule = list(arrivals(rate, arguments.seconds, dice))
    begin = time.perf_counter()
    done = run_schedule(target, schedule, arguments.prompt, arguments.tokens)
    seconds = time.perf_counter() - begin
    finished = [a for a in done if a.outcome == "finished"]
    return {"rate": rate, "requests": len(schedule),
            **{outcome: sum(a.outcome == outcome for a in done)
               for outcome in ("finished", "refused", "failed")},
            "first_token": spread([a.times[0] - a.begin for a in finished]),
            "inter_token": spread([after - before for a in finished
                                   for before, after in zip(a.times, a.times[1:])]),
            "total_tokens_per_s": sum(len(a.times) for a in finished) / seconds,
            "client_late_max_ms": 1e3 * max((a.late for a in done), default=0)}


def print_table(result):
    print(f"{result['model']} on {result['device']}: prompts of {result['prompt_tokens']} tokens, "
          f"{result['tokens_each']} new, {result['seconds']:g} s a rate\n")
    print("  req/s  finished  refused  failed   tok/s     first token p50 / p99 / max ms"
          "     between tokens p50 / p99 / max ms   late ms")
    for row in result["rates"]:
        first, inter = ("{p50_ms:10.2f} / {p99_ms:8.2f} / {max_ms:8.2f}".format(**row[name])
                        if row[name] else f"{'-':>32}" for name in ("first_token", "inter_token"))
        print(f"  {row['rate']:5g}  {row['finished']:8}  {row['refused']:7}  {row['failed']:6}  "
              f"{row['total_tokens_per_s']:6.0f}   {first}      {inter}  "
              f"{row['client_late_max_ms']:8.2f}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "models" / "shakespeare"))
    parser.add_argument("--binary", default=str(ROOT / "build" / "gptd"))
    parser.add_argument("--rates", type=float, nargs="+", default=[5, 20, 80], metavar="PER_SECOND")
    parser.add_argument("--seconds", type=float, default=20, help="of arrivals, at each rate")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="new ones, of each request")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, - for stdout")
    parser.add_argument("--url", help="measure this running server instead of starting gptd")
    parser.add_argument("--vocabulary", type=int, default=1000,
                        help="of the server at --url: prompts are made of token ids below this")
    parser.add_argument("more", nargs="*", help="options of gptd serve, after --")
    return parser.parse_args()


def measure(arguments, target, result):
    run_schedule(target, [0] * 4, arguments.prompt, arguments.tokens)  # warms up
    result["rates"] = [bench_rate(target, rate, arguments) for rate in arguments.rates]


def main():
    arguments = parse_arguments()
    result = {"model": arguments.model, "cores": os.cpu_count(), "seconds": arguments.seconds,
              "prompt_tokens": arguments.prompt, "tokens_each": arguments.tokens}
    if arguments.url:
        result["device"] = arguments.url
        measure(arguments, Target(arguments.url, 0, arguments.vocabulary, False), result)
    else:
        process, url, _ = start(arguments, arguments.model)
        try:
            entry, result["device"] = describe(url)
            measure(arguments, Target(url, 0, entry["vocab_size"], True), result)
        finally:
            stop(process)
    report(result, print_table, arguments.json)


if __name__ == "__main__":
    main()
