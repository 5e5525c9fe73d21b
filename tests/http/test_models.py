"""GET /v1/models, /v1/tokenize, /v1/detokenize, /health, /ready."""

import pytest

from gptd import CONFIG, check_error, refused

TEXTS = ["ROMEO:\nWhat light", "", " ", "\n\n\n", "é日本語🎭", "a\u0301", "\u0001\u007f",
         "don't I'll we've", "<|endoftext|>", "x" * 300, "   leading and trailing   "]


def test_models(http):
    reply = http.get("/v1/models").json()
    assert reply["object"] == "list"
    (entry,) = reply["data"]
    assert entry["object"] == "model"
    assert entry["id"] == "shakespeare"
    assert isinstance(entry["created"], int)
    assert entry["owned_by"]


def test_one_model(http, model):
    assert http.get(f"/v1/models/{model}").json()["id"] == model


def test_no_such_model(http):
    reply = http.get("/v1/models/nobody")
    assert reply.status_code == 404
    assert "nobody" in check_error(reply)["message"]


@pytest.mark.parametrize("text", TEXTS)
def test_tokenize_and_back(http, text):
    reply = http.post("/v1/tokenize", json={"prompt": text}).json()
    assert reply["count"] == len(reply["tokens"])
    assert all(0 <= token < CONFIG["vocab_size"] for token in reply["tokens"])
    back = http.post("/v1/detokenize", json={"tokens": reply["tokens"]}).json()
    assert back["prompt"] == text


def test_special_tokens_in_text_are_text(http):
    tokens = http.post("/v1/tokenize", json={"prompt": "<|endoftext|>"}).json()["tokens"]
    assert len(tokens) > 1


def test_detokenize_refuses_unknown_ids(http):
    for bad in (CONFIG["vocab_size"], -1, 10**12):
        assert refused(http, {"tokens": [1, bad]}, path="/v1/detokenize")["param"].startswith(
            "tokens")


@pytest.mark.parametrize("path, body", [
    ("/v1/tokenize", {}), ("/v1/tokenize", {"prompt": 5}),
    ("/v1/tokenize", {"prompt": "x", "more": 1}), ("/v1/detokenize", {}),
    ("/v1/detokenize", {"tokens": "x"}), ("/v1/detokenize", {"tokens": [1.5]}),
    ("/v1/detokenize", {"tokens": [1], "more": 1})])
def test_ill_formed(http, path, body):
    assert refused(http, body, path=path)["param"]


def test_alive_and_ready(http):
    for path in ("/health", "/ready"):
        assert http.get(path).status_code == 200
