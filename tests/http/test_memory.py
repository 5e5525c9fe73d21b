"""GET /v1/memory: the plan is the allocation, and pages come back."""

import re
import time

import pytest

from gptd import SANITIZED, check_error, complete, memory, stream, wait_until

COMPONENTS = {"weights", "kv_cache", "activations", "logits", "workspace", "staging", "host"}


def device(http):
    return memory(http)["devices"][0]


def test_components(http):
    for entry in memory(http)["devices"]:
        assert COMPONENTS <= set(entry["components"])
        for numbers in entry["components"].values():
            assert numbers["planned_bytes"] == numbers["allocated_bytes"]
            assert 0 <= numbers["in_use_bytes"] <= numbers["allocated_bytes"]
            assert numbers["in_use_bytes"] <= numbers["peak_bytes"] <= numbers["planned_bytes"]


def test_planned_is_allocated_and_the_sum_of_its_parts(http):
    for entry in memory(http)["devices"]:
        assert entry["planned_bytes"] == entry["allocated_bytes"]
        for kind in ("planned_bytes", "allocated_bytes"):
            assert entry[kind] == sum(part[kind] for part in entry["components"].values())


def test_weights_are_at_least_the_parameters(http):
    """3.2 million parameters in two bytes each, plus what the layout pads."""
    weights = device(http)["components"]["weights"]["allocated_bytes"]
    assert 6_000_000 < weights < 20_000_000


def test_pages(http):
    pages = memory(http)["kv_pages"]
    assert pages["total"] > 0
    assert pages["page_tokens"] == 16
    assert 0 <= pages["used"] <= pages["high_water"] <= pages["total"]


def test_process(http):
    process = memory(http)["process"]
    assert process["rss_bytes"] > 0
    assert process["peak_rss_bytes"] >= process["rss_bytes"] // 2
    assert isinstance(process["unexplained_bytes"], int)


def test_what_the_kernel_sees(http):
    """All of the plan is there, none swapped out or never touched (huge pages may round up)."""
    entry = device(http)
    assert 0 <= entry["resident_bytes"] - entry["allocated_bytes"] < 64 * 1024
    assert entry["driver"] is None  # a GPU's: tests/cuda/test_gptd.py


def test_little_is_unexplained(http):
    """Stacks, thread-local data, what malloc rounds up."""
    if SANITIZED:
        pytest.skip("shadow memory is in no plan")
    complete(http, prompt="A", max_tokens=5)
    process = memory(http)["process"]
    assert abs(process["unexplained_bytes"]) < 4 << 20
    assert 0 < process["heap_bytes"] < 16 << 20


def test_models_and_devices_agree(http):
    reply = memory(http)
    assert reply["models"][0]["components"] == device(http)["components"]
    assert reply["models"][0]["planned_bytes"] == device(http)["planned_bytes"]


def test_history(http):
    assert "history" not in memory(http)
    reply = http.get("/v1/memory?history=1").json()
    samples = reply["history"]["samples"]
    assert reply["history"]["interval_s"] == 10 and 1 <= len(samples) <= 360
    assert abs(samples[-1]["time"] - time.time()) < 60
    assert samples[-1]["rss_bytes"] > samples[-1]["resident_bytes"] > 0
    assert samples[-1]["jobs_rss_bytes"] == 0


@pytest.mark.parametrize("query", ["history=yes", "history=", "histry=1", "history=1&a=b"])
def test_a_query_it_does_not_know(http, query):
    reply = http.get("/v1/memory?" + query)
    assert reply.status_code == 400
    assert check_error(reply)["param"] in ("history", "histry", "a")


def test_metrics_say_the_same(http):
    text = http.get("/metrics").text
    entry = device(http)
    weights = entry["components"]["weights"]["planned_bytes"]
    assert f'gptd_memory_bytes{{component="weights",kind="planned"}} {weights}\n' in text
    assert re.search(r'gptd_model_memory_bytes\{model="shakespeare",kind="allocated"\} '
                     f'{entry["allocated_bytes"]}\n', text)
    assert re.search(r"^gptd_memory_unexplained_bytes -?\d+$", text, re.M)
    assert f'gptd_memory_resident_bytes {entry["resident_bytes"]}\n' in text


@pytest.mark.parametrize("body", [{"n": 3}, {"prompt": ["A", "B", "C"]}, {"max_tokens": 200},
                                  {"max_tokens": 0, "echo": True, "logprobs": 1}, {"best_of": 4}])
def test_pages_come_back(http, body):
    complete(http, **{"prompt": "ROMEO:\n" * 5, "max_tokens": 20, **body})
    wait_until(lambda: memory(http)["kv_pages"]["used"] == 0, what="0 pages in use")


def test_pages_are_in_use_while_a_request_runs(http):
    with http.stream("POST", "/v1/completions",
                     json={"prompt": "A", "max_tokens": 250, "stream": True,
                           "ignore_eos": True}) as reply:
        next(reply.iter_lines())
        with_request = memory(http)
    assert with_request["kv_pages"]["high_water"] > 0
    wait_until(lambda: memory(http)["kv_pages"]["used"] == 0, what="0 pages in use")


def test_serving_allocates_nothing(http):
    before = device(http)["allocated_bytes"]
    for seed in range(10):
        stream(http, prompt="ROMEO:\n" * seed, max_tokens=30, seed=seed, n=2)
    assert device(http)["allocated_bytes"] == before
