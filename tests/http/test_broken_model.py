"""A model whose weights are not all numbers: requests that meet one end with an error that says so,
and no other does."""

import json
import struct

import pytest

import gptd
from gptd import check_error, complete

BROKEN = "Z"  # a token of its own
NAN = b"\xff\x7f"  # as bf16


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The shipped model, but for one token's embedding."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    folder.mkdir()
    for file in gptd.MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    n, = struct.unpack_from("<Q", weights)
    embedding = json.loads(weights[8:8 + n])["model.embed_tokens.weight"]
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"][BROKEN]
    width = embedding["shape"][1]
    assert embedding["dtype"] == "BF16"
    at = 8 + n + embedding["data_offsets"][0] + token * width * 2
    weights[at:at + width * 2] = NAN * width
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture(scope="module")
def server(broken):
    started = gptd.Server(model=broken)
    yield started
    started.stop()


def failed(reply, status=500):
    assert reply.status_code == status, reply.text
    return check_model_error(check_error(reply))


def check_model_error(error):
    assert error["type"] == "server_error" and error["code"] == "model_failed"
    assert "model broken: " in error["message"] and "--dtype f32" in error["message"]


def test_only_requests_that_meet_it_fail(server, http):
    before = complete(http, prompt="A", max_tokens=30, seed=3)["choices"]
    for body in ({"prompt": "AZ"}, {"prompt": "AZ", "temperature": 0}, {"prompt": ["A", "AZ"]},
                 {"prompt": "AZ", "n": 3},
                 {"prompt": "AZA", "max_tokens": 0, "echo": True, "logprobs": 2}):
        failed(http.post("/v1/completions", json={"max_tokens": 4, **body}))
    failed(http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Z"}]}))
    assert complete(http, prompt="A", max_tokens=30, seed=3)["choices"] == before
    assert "gptd_model_failures_total 6\n" in http.get("/metrics").text
    assert server.output().count("model broken: the logits") == 1


def test_a_stream_ends_with_the_error(http):
    with http.stream("POST", "/v1/completions", json={"prompt": "Z", "stream": True}) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert reply.status_code == 200 and lines[-1] == "data: [DONE]"
    check_model_error(json.loads(lines[0].removeprefix("data: "))["error"])


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q8_0", "q4_0"])
def test_generate_fails_in_every_format(broken, dtype):
    done = gptd.run("generate", "--model", broken, "--prompt", "AZ", "--dtype", dtype)
    assert done.returncode == 1 and not done.stdout.strip()
    assert "the logits after 2 tokens are not finite" in done.stderr
    assert len(done.stderr.splitlines()) == 1
