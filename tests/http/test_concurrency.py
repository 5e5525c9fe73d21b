"""Many clients at once. Whoever finishes gets the very reply that the same request gets alone;
whoever leaves takes nothing along; at the end no page is in use."""

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gptd import (CONTEXT, PATIENCE, SANITIZED, Server, complete, events, joined, memory, refused,
                  stream, text_of, wait_until)

CLIENTS = 64
ROUNDS = 1 if SANITIZED else 3


def bodies(n, seed):
    """n requests of every shape, each determined by its own seed."""
    dice = random.Random(seed)
    words = "thou art more lovely and more temperate rough winds do shake the darling buds".split()
    for i in range(n):
        prompt = " ".join(dice.choices(words, k=dice.choice([1, 3, 10, 30])))
        body = {"prompt": prompt, "max_tokens": dice.choice([1, 5, 20, 60]),
                "seed": dice.randrange(2**32), "temperature": dice.choice([0, 0.7, 1.2])}
        if i % 7 == 0:
            body |= {"n": 2}
        if i % 5 == 0:
            body |= {"stop": [dice.choice("aeiou") + " "]}
        if i % 6 == 0:
            body |= {"frequency_penalty": 1, "top_k": 40}
        if i % 8 == 0:
            body |= {"top_p": 0.8, "logprobs": 2}
        yield body


def texts(choices_or_chunks, n):
    return [joined(choices_or_chunks, index) for index in range(n)]


def same_as_alone(http, finished):
    """Repeats each finished request on an idle server."""
    for body, got in finished:
        choices = complete(http, **body)["choices"]
        assert got == [choice["text"] for choice in choices], body


def no_pages_in_use(http):
    wait_until(lambda: memory(http)["kv_pages"]["used"] == 0, what="0 pages in use")


def test_64_streams_equal_their_lonely_selves(server, http):
    def run(body):
        with server.client() as own:
            return body, texts(stream(own, **body), body.get("n", 1))

    for round_ in range(ROUNDS):
        with ThreadPoolExecutor(CLIENTS) as pool:
            finished = list(pool.map(run, bodies(CLIENTS, round_)))
        assert len(finished) == CLIENTS
        same_as_alone(http, finished)
    no_pages_in_use(http)


def test_64_streams_of_which_many_leave(server, http):
    """At random moments, without a word. Who stays must not notice."""
    def run(numbered):
        i, body = numbered
        dice = random.Random(i)
        with server.client() as own:
            if i % 3 == 0:
                return body, texts(stream(own, **body), body.get("n", 1))
            leave_after = dice.choice([0, 1, 2, 5, 20])
            with own.stream("POST", "/v1/completions",
                            json={**body, "max_tokens": 150, "stream": True}) as reply:
                assert reply.status_code == 200
                for _, _line in zip(range(leave_after), reply.iter_lines()):
                    pass
                time.sleep(dice.random() * 0.05)
            return None

    for round_ in range(ROUNDS):
        with ThreadPoolExecutor(CLIENTS) as pool:
            results = list(pool.map(run, enumerate(bodies(CLIENTS, 100 + round_))))
        finished = [result for result in results if result]
        assert len(finished) == (CLIENTS + 2) // 3
        same_as_alone(http, finished)
    no_pages_in_use(http)


def test_streams_and_plain_replies_mix(server, http):
    def run(numbered):
        i, body = numbered
        with server.client() as own:
            if i % 2:
                return body, [choice["text"] for choice in complete(own, **body)["choices"]]
            return body, texts(stream(own, **body), body.get("n", 1))

    with ThreadPoolExecutor(CLIENTS) as pool:
        same_as_alone(http, list(pool.map(run, enumerate(bodies(CLIENTS, 200)))))
    no_pages_in_use(http)


def test_long_prompts_beside_short_ones(server, http):
    """Prefill in chunks beside decodes, with prefixes shared and not."""
    beginning = "Before we proceed any further, hear me speak. " * 4
    def body(i):
        return {"prompt": (beginning if i % 2 else "") + f"Citizen {i}: " * (1 + i % 9),
                "max_tokens": 30, "temperature": 0}

    def run(i):
        with server.client() as own:
            return body(i), texts(stream(own, **body(i)), 1)

    with ThreadPoolExecutor(24) as pool:
        same_as_alone(http, list(pool.map(run, range(24))))
    no_pages_in_use(http)


def test_a_slow_reader_slows_nobody(server, http):
    """It reads nothing while others work; its own text is complete all the same."""
    body = {"prompt": "A", "max_tokens": CONTEXT - 10, "temperature": 0, "ignore_eos": True}
    alone = text_of(http, **body)
    with server.client() as slow:
        with slow.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
            lines = reply.iter_lines()
            first = next(lines)
            begin = time.monotonic()
            for seed in range(5):
                complete(http, prompt="B", max_tokens=10, seed=seed)
            assert time.monotonic() - begin < 10 * PATIENCE
            time.sleep(0.5)
            chunks = list(events([first, *lines]))
    assert joined(chunks) == alone
    no_pages_in_use(http)


def test_rubbish_beside_good_requests(server, http):
    """Errors, unknown routes and scrapes interleaved with a stream do not touch it."""
    body = {"prompt": "KING LEAR:", "max_tokens": 100, "temperature": 0.9, "seed": 1}
    expected = text_of(http, **body)
    ended = threading.Event()

    def annoy():
        with server.client() as own:
            while not ended.is_set():
                refused(own, {"prompt": 5})
                refused(own, b"{" * 1000)
                own.get("/metrics")
                own.get("/nowhere")
                own.post("/v1/tokenize", json={"prompt": "x " * 1000})

    with ThreadPoolExecutor(4) as pool:
        annoyers = [pool.submit(annoy) for _ in range(3)]
        try:
            assert [joined(stream(http, **body)) for _ in range(3)] == [expected] * 3
        finally:
            ended.set()
        for annoyer in annoyers:
            annoyer.result()


def test_a_full_queue_answers_429():
    """A server with room for one at a time and a queue of two."""
    small = Server("--max-seqs", 1, "--max-queue", 2)
    try:
        def run(i):
            with small.client() as own:
                reply = own.post("/v1/completions", json={
                    "prompt": "A", "max_tokens": 200, "ignore_eos": True, "seed": 5})
                return reply.status_code, reply.headers.get("retry-after"), reply.text

        with ThreadPoolExecutor(24) as pool:
            results = list(pool.map(run, range(24)))
        statuses = [status for status, _, _ in results]
        assert set(statuses) == {200, 429}, statuses
        for status, retry_after, text in results:
            if status == 429:
                assert int(retry_after) >= 1
                assert json.loads(text)["error"]["message"]
        # What was accepted finished, and with the same text.
        assert len({json.loads(text)["choices"][0]["text"]
                    for status, _, text in results if status == 200}) == 1
        with small.client() as own:
            no_pages_in_use(own)
    finally:
        small.stop()


def test_what_waits_for_pages_is_served_in_the_end():
    """A pool of one full sequence: long requests take turns, none fails."""
    small = Server("--max-seqs", 8, "--kv-cache", "1MiB")
    try:
        def run(body):
            with small.client() as own:
                return body, texts(stream(own, **body), body.get("n", 1))

        with ThreadPoolExecutor(16) as pool:
            finished = list(pool.map(run, [{**body, "n": 1} for body in bodies(16, 300)]))
        with small.client() as own:
            same_as_alone(own, finished)
            no_pages_in_use(own)
    finally:
        small.stop()


@pytest.mark.parametrize("options", [("--max-batch-tokens", 16, "--max-seqs", 4),
                                     ("--threads", 1), ("--no-prefix-cache",)])
def test_no_option_changes_a_reply(http, options):
    """Chunking, threads and prefix reuse: the bytes stay."""
    some = list(bodies(8, 400))
    other = Server(*options)
    try:
        with other.client() as own:
            same_as_alone(own, [(body, [c["text"] for c in complete(http, **body)["choices"]])
                                for body in some])
    finally:
        other.stop()


def test_the_server_is_well(server, http):
    assert server.running()
    assert http.get("/health").status_code == 200
    assert httpx.get(server.url + "/ready").status_code == 200
