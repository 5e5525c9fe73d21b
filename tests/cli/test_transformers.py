"""What gptd trains and writes, transformers loads, and computes the same: every logit, up to a
row's constant, which probabilities do not have. Skipped where there is no torch."""

import json
import random

import pytest

from gptd import Server, complete, run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 32, "batch_size": 4,
         "max_iters": 8, "learning_rate": 0.01, "eval_interval": 0, "sample_tokens": 0}
LLAMA = {**SHAPE, "pos_encoding": "rope", "norm_type": "rmsnorm", "mlp_type": "swiglu",
         "n_kv_head": 2, "n_ff": 96}
CASES = {
    "gpt2": {**SHAPE, "bias": True},
    "gpt2_without_biases": {**SHAPE, "bias": False},
    "gpt2_untied": {**SHAPE, "bias": True, "tie_weights": False},
    "llama": {**LLAMA, "bias": False},
    "llama_bf16": {**LLAMA, "bias": False, "dtype": "bf16", "tie_weights": False},
    "qwen2": {**LLAMA, "bias": False, "bias_qkv": True},
    "qwen3": {**LLAMA, "bias": False, "qk_norm": True, "head_dim": 32},
}
ALPHABET = "abcdefghijklmnop \n"  # so few that top_logprobs has them all


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    dice = random.Random(1)
    words = ["".join(dice.choices(ALPHABET[:16], k=dice.randint(1, 6))) for _ in range(40)]
    path = tmp_path_factory.mktemp("text") / "data.txt"
    path.write_text(ALPHABET + "\n".join(" ".join(dice.choices(words, k=6)) for _ in range(200)))
    return path


def log_probs_of_gptd(model, ids, names):
    """[T - 1][V]: of the token after each prefix."""
    server = Server("--dtype", "f32", model=model)
    try:
        with server.client() as http:
            reply = complete(http, prompt=ids, max_tokens=0, echo=True, logprobs=len(names))
    finally:
        server.stop()
    rows = reply["choices"][0]["logprobs"]["top_logprobs"][1:]
    assert all(len(row) == len(names) for row in rows)
    return torch.tensor([[row[name] for name in names] for row in rows])


@pytest.mark.parametrize("name", CASES)
def test_logits_agree(tmp_path, text, name):
    if name == "qwen3" and "qwen3" not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} does not know Qwen3")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CASES[name]))
    reply = run("train", "--config", config, "--model-name", "m", "--input", text, "--out-dir",
                tmp_path, "--threads", 2)
    assert reply.returncode == 0, reply.stderr
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", torch_dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    ids = tokenizer(text.read_text()[40:72]).input_ids
    assert len(ids) == 32 and len(tokenizer) == len(ALPHABET)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0, :-1]
    theirs = torch.log_softmax(logits, -1)
    names = [tokenizer.decode([i]) for i in range(len(ALPHABET))]
    ours = log_probs_of_gptd(tmp_path / "m", ids, names)
    # It has learned: rows differ, so that agreeing is not a matter of uniform noise.
    assert theirs.std() > 0.3
    assert (theirs - ours).abs().max() < 1e-4
