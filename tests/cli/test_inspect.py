"""`gptd inspect --json`: what it says is what the files say."""

import json
import struct

import pytest

from gptd import CONFIG, MODEL, ROOT, run


def inspect(path):
    reply = run("inspect", path, "--json")
    assert reply.returncode == 0, reply.stderr
    return json.loads(reply.stdout)


def headers(directory):
    """The tensors of a directory's safetensors files."""
    tensors = {}
    for path in sorted(directory.glob("model*.safetensors")):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        tensors.update(json.loads(data[8:8 + size]))
    tensors.pop("__metadata__", None)
    return tensors


def n_elements(shape):
    n = 1
    for dim in shape:
        n *= dim
    return n


@pytest.mark.parametrize("directory", [MODEL, ROOT / "tests/golden/gpt2",
                                       ROOT / "tests/golden/mistral",
                                       ROOT / "tests/golden/qwen3"], ids=lambda path: path.name)
def test_inspect_agrees_with_the_files(directory):
    report, tensors = inspect(directory), headers(directory)
    found = {t["name"]: t for t in report["tensors"]}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        begin, end = tensor["data_offsets"]
        assert found[name]["dtype"] == tensor["dtype"]
        assert found[name]["shape"] == tensor["shape"]
        assert found[name]["bytes"] == end - begin
    files = directory.glob("model*.safetensors")
    assert report["file_bytes"] == sum(path.stat().st_size for path in files)
    parameters = dict(report["parameters"])
    total = parameters.pop("total")
    assert total == sum(parameters.values())
    assert total == sum(n_elements(tensor["shape"]) for tensor in tensors.values())


def test_inspect_of_the_shipped_model():
    report = inspect(MODEL)
    config = report["config"]
    assert report["format"] == "huggingface" and report["architecture"] == CONFIG["model_type"]
    assert config["n_embd"] == CONFIG["hidden_size"]
    assert config["n_layer"] == CONFIG["num_hidden_layers"]
    assert config["block_size"] == CONFIG["max_position_embeddings"]
    assert config["vocab_size"] == CONFIG["vocab_size"]
    # Keys and values of every layer; f32 is twice bf16.
    head_dim = config["n_embd"] // config["n_head"]
    kv = 2 * config["n_layer"] * config["n_kv_head"] * head_dim
    assert report["memory"]["f32"]["kv_bytes_per_token"] == 4 * kv
    assert report["memory"]["bf16"]["kv_bytes_per_token"] == 2 * kv
    assert report["memory"]["f32"]["weight_bytes"] == 4 * report["parameters"]["total"]
    assert report["tokenizer"].startswith("byte-level BPE")


def test_inspect_goldens_without_a_tokenizer():
    assert inspect(ROOT / "tests/golden/llama")["tokenizer"] is None
