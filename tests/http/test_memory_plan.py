"""POST /v1/memory/plan: the command line's answer over HTTP, strictly asked for, nothing taken."""

import json

import pytest

from gptd import CONFIG, SANITIZED, check_error, memory, run

TINY = {"n_layer": 4, "n_head": 4, "n_embd": 192, "block_size": 128, "vocab_size": 50304,
        "batch_size": 16}


def ask(http, **body):
    reply = http.post("/v1/memory/plan", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_preset_is_answered_as_on_the_command_line(http):
    reply = ask(http, model="configs/150M", gpu="8GiB", moments="q8")
    said = json.loads(run("plan", "--config", "configs/150M.json", "--gpu", "8GiB", "--moments",
                          "q8", "--json").stdout)
    assert said.pop("model") == "configs/150M.json" and reply.pop("model") == "configs/150M"
    assert reply == said
    assert reply["parameters"] == 152_101_632
    assert reply["training"]["options"]["moments"] == "q8"


def test_a_config_of_ones_own(http):
    reply = ask(http, config=TINY)
    assert reply["parameters"] == 11_454_144
    for part in (reply["training"], reply["generation"]):
        assert part["total_bytes"] == sum(part["components"].values())
    half = ask(http, config={**TINY, "dtype": "bf16"})
    assert half["training"]["components"]["weights"] < reply["training"]["components"]["weights"]
    assert len(reply["gpus"]) >= 40 and all(card["trains"] for card in reply["gpus"])


def test_a_served_model(http, model):
    for reply in (ask(http), ask(http, model=model)):
        assert reply["model"] == model
        assert reply["generation"]["options"]["max_context"] == CONFIG["max_position_embeddings"]


def test_what_does_not_fit_is_an_answer(http):
    reply = ask(http, config=TINY, memory_budget="100MB", device="cuda")
    assert reply["budget_bytes"] == 100_000_000
    assert not reply["fits"] and reply["generation"]["fits"]
    assert reply["shortfall_bytes"] == reply["training"]["total_bytes"] - 100_000_000
    assert ask(http, config=TINY, memory_budget=100_000_000, device="cuda",
               purpose="generation")["fits"]


@pytest.mark.parametrize("body, param", [
    ({"confg": {}}, "confg"),
    ({"config": []}, "config"),
    ({"config": {**TINY, "n_layers": 4}}, "n_layers"),
    ({"config": {**TINY, "n_layer": "4"}}, "n_layer"),
    ({"config": {**TINY, "n_layer": -1}}, "n_layer"),
    ({"config": {**TINY, "n_layer": 10**15}}, "n_layer"),
    ({"config": {**TINY, "n_layer": 161}}, "n_layer"),
    ({"config": {**TINY, "n_embd": 1 << 60}}, None),
    ({"config": {}}, None),
    ({"config": TINY, "model": "shakespeare"}, "config"),
    ({"config": TINY, "batch_size": 2.5}, "batch_size"),
    ({"config": TINY, "batch_size": 0}, "batch_size"),
    ({"config": TINY, "batch_size": "8"}, "batch_size"),
    ({"config": TINY, "batch_size": 1 << 40}, "batch_size"),
    ({"config": TINY, "moments": "f8"}, "moments"),
    ({"config": TINY, "moments": 8}, "moments"),
    ({"config": TINY, "sequence_length": 4096}, "sequence_length"),
    ({"config": TINY, "max_context": 4096}, "max_context"),
    ({"config": TINY, "gpu": "RTX 9999"}, "gpu"),
    ({"config": TINY, "gpu": "8GiB", "device": "cpu"}, "gpu"),
    ({"config": TINY, "memory_budget": "much"}, "memory_budget"),
    ({"config": TINY, "memory_budget": -1}, "memory_budget"),
    ({"block_size": 64}, "block_size"),
])
def test_strict(http, body, param):
    reply = http.post("/v1/memory/plan", json=body)
    assert reply.status_code == 400, reply.text
    error = check_error(reply)
    if param:
        assert error["param"] == param, error


@pytest.mark.parametrize("name", ["configs/none", "configs/../configs/tiny", "configs/",
                                  "configs/.tiny", "nobody"])
def test_unknown_models(http, name):
    reply = http.post("/v1/memory/plan", json={"model": name})
    assert reply.status_code == 404
    assert check_error(reply)["param"] == "model"


def test_the_largest_config_is_answered_and_takes_nothing(http):
    """Thousands of times any machine: numbers, not an overflow, and no memory."""
    before = memory(http)["process"]["rss_bytes"]
    reply = ask(http, gpu="H200", config={
        "n_layer": 160, "n_head": 1024, "n_embd": 131072, "block_size": 1 << 24,
        "vocab_size": 1 << 22, "batch_size": 64, "head_dim": 128, "n_ff": 131072})
    assert not reply["fits"] and reply["shortfall_bytes"] > 1 << 45
    assert all(not card["trains"] and not card["generates"] for card in reply["gpus"])
    if not SANITIZED:
        assert memory(http)["process"]["rss_bytes"] < before + (64 << 20)
