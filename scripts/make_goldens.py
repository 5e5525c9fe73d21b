#!/usr/bin/env python3
"""Make tiny random Hugging Face models and what `transformers` computes with them.

    python3 scripts/make_goldens.py [--out tests/golden] [--only NAME ...]

Each case becomes a directory `OUT/NAME/` in the format that tests/golden/README.md describes:
config.json and weights as `save_pretrained` writes them, golden.json, logits.f32 and
partials.safetensors. The models are random but not gentle: norms away from one, biases away from
zero, attention with a mind of its own, so that a forgotten bias or a wrong rotation shows in the
first digits. A seed is accepted only if the greedy path has no near ties.

Logits come from `transformers` with every weight upcast from its stored type to float64 (the parts
that the library itself computes in float32, which are norms, softmax and rotary angles, stay so).
Qwen3 is younger than the torch this runs on; its case uses `reference_forward` below, a plain
float64 forward pass of the Llama family, which every other case of that family is checked against.

Needs torch >= 1.13, transformers 4.46, safetensors (see scripts/README.md for the environment).
The same versions write the same bytes.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

PROMPT_LENGTHS = (1, 9, 49)  # the last one spans four pages of 16 tokens
N_GREEDY = 24
# Modules that only repeat their input here, or whose output is no activation.
NOT_RECORDED = ("resid_dropout", "mlp.dropout", "rotary_emb", "lm_head")
MIN_GAP = 0.02  # between the two best logits at each greedy step

LLAMA = dict(
    vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
    bos_token_id=1, eos_token_id=2,
)

GPT2 = dict(
    vocab_size=150, n_positions=96, n_embd=48, n_layer=2, n_head=3,
    activation_function="gelu_new", layer_norm_epsilon=1e-5,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
)

# name -> (model_type, changes to the base config, stored dtype, save_pretrained's max_shard_size)
CASES = {
    "gpt2": ("gpt2", dict(), torch.float32, "5GB"),
    "gpt2_untied": ("gpt2", dict(activation_function="gelu", tie_word_embeddings=False,
                                 n_inner=128, layer_norm_epsilon=1e-6), torch.float32, "5GB"),
    "llama": ("llama", dict(tie_word_embeddings=False), torch.float32, "5GB"),
    "llama3": ("llama", dict(
        tie_word_embeddings=True,
        # With 32 original positions, the first of the eight frequencies is kept, the second lies
        # on the ramp, and the others are divided by the factor.
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                          high_freq_factor=4.0, original_max_position_embeddings=32),
    ), torch.float16, "5GB"),
    "llama_linear": ("llama", dict(tie_word_embeddings=False,
                                   rope_scaling=dict(type="linear", factor=4.0)),
                     torch.float32, "5GB"),
    "mistral": ("mistral", dict(tie_word_embeddings=False, sliding_window=None, rope_theta=1e6,
                                num_key_value_heads=1), torch.float32, "150KB"),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True, rope_theta=1e6, rms_norm_eps=1e-6,
                            use_sliding_window=False), torch.bfloat16, "5GB"),
    "qwen3": ("qwen3", dict(tie_word_embeddings=True, rope_theta=1e6, rms_norm_eps=1e-6,
                            head_dim=32, attention_bias=False, use_sliding_window=False,
                            sliding_window=None), torch.float32, "5GB"),
}

CLASSES = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}


# ---------------------------------------------------------------------------------------------
# Random weights


def random_weight(name, shape, generator):
    """Matrices that keep the scale of what passes through, norms and biases that matter."""
    if len(shape) == 1:
        if name.endswith(".bias"):
            return 0.2 * torch.randn(shape, generator=generator)
        return 1.0 + 0.3 * torch.randn(shape, generator=generator)
    if name.endswith(("wte.weight", "embed_tokens.weight")):
        return 0.3 * torch.randn(shape, generator=generator)
    if name.endswith("wpe.weight"):
        return 0.2 * torch.randn(shape, generator=generator)
    fan_in = shape[0] if name.startswith("transformer.h.") else shape[1]  # Conv1D is [in,out]
    return 1.3 * fan_in**-0.5 * torch.randn(shape, generator=generator)


def qwen3_shapes(c):
    """Names and shapes of Qwen3ForCausalLM's parameters, with tied embeddings."""
    H, G, K = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    C, F, V = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    shapes = {"model.embed_tokens.weight": (V, C)}
    for i in range(c["num_hidden_layers"]):
        for name, shape in {
            "self_attn.q_proj": (H * K, C), "self_attn.k_proj": (G * K, C),
            "self_attn.v_proj": (G * K, C), "self_attn.o_proj": (C, H * K),
            "self_attn.q_norm": (K,), "self_attn.k_norm": (K,),
            "mlp.gate_proj": (F, C), "mlp.up_proj": (F, C), "mlp.down_proj": (C, F),
            "input_layernorm": (C,), "post_attention_layernorm": (C,),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    shapes["model.norm.weight"] = (C,)
    return shapes


# ---------------------------------------------------------------------------------------------
# The reference for the Llama family, float64 throughout


def rope_frequencies(c, head_dim):
    """Angles per position for each pair, after scaling: linear divides all by the factor; llama3
    divides the slow ones, keeps the fast ones and interpolates between."""
    frequency = c["rope_theta"] ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    scaling = c.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind is None:
        return frequency
    scaled = frequency / scaling["factor"]
    if kind == "linear":
        return scaled
    assert kind == "llama3", kind
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - ramp) * scaled + ramp * frequency


def reference_forward(c, w, tokens, record=lambda name, value: None):
    """Logits [T,V] of a Llama, Mistral, Qwen2 or Qwen3. c: config, w: weights by name (float64),
    tokens: list of ids. `record` sees the output of each step under its module's name."""
    C, H, G = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    K, T = c.get("head_dim") or C // H, len(tokens)

    def norm(name, x):
        y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + c["rms_norm_eps"]) * w[name + ".weight"]
        record(name, y)
        return y

    def linear(name, x):
        y = x @ w[name + ".weight"].T
        if name + ".bias" in w:
            y = y + w[name + ".bias"]
        record(name, y)
        return y

    angles = torch.outer(torch.arange(T).double(), rope_frequencies(c, K))  # [T,K/2]
    cos, sin = angles.cos(), angles.sin()

    def rotate(x):  # [heads,T,K]; the pairs are (i, i + K/2)
        a, b = x[..., :K // 2], x[..., K // 2:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    x = w["model.embed_tokens.weight"][tokens]  # [T,C]
    record("model.embed_tokens", x)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = norm(f"{layer}.input_layernorm", x)
        q = linear(f"{layer}.self_attn.q_proj", h).view(T, H, K)
        k = linear(f"{layer}.self_attn.k_proj", h).view(T, G, K)
        v = linear(f"{layer}.self_attn.v_proj", h).view(T, G, K)
        if f"{layer}.self_attn.q_norm.weight" in w:  # Qwen3: over each head, before the rotation
            q = norm(f"{layer}.self_attn.q_norm", q)
            k = norm(f"{layer}.self_attn.k_norm", k)
        q, k, v = rotate(q.transpose(0, 1)), rotate(k.transpose(0, 1)), v.transpose(0, 1)
        k, v = k.repeat_interleave(H // G, 0), v.repeat_interleave(H // G, 0)  # [H,T,K]
        scores = q @ k.transpose(1, 2) / math.sqrt(K)
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
        y = (torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(T, H * K)
        y = linear(f"{layer}.self_attn.o_proj", y)
        record(f"{layer}.self_attn", y)
        x = x + y
        h = norm(f"{layer}.post_attention_layernorm", x)
        gate = torch.nn.functional.silu(linear(f"{layer}.mlp.gate_proj", h))
        y = linear(f"{layer}.mlp.down_proj", gate * linear(f"{layer}.mlp.up_proj", h))
        record(f"{layer}.mlp", y)
        x = x + y
        record(layer, x)
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm("model.norm", x) @ head.T


# ---------------------------------------------------------------------------------------------
# A case: the model, a way to run it, a way to save it


class TransformersCase:
    def __init__(self, model_type, config, dtype, max_shard_size, generator):
        config_class, model_class = CLASSES[model_type]
        self.config = config_class(**config)
        self.max_shard_size = max_shard_size
        self.stored = model_class(self.config).eval()
        with torch.no_grad():
            for name, parameter in self.stored.named_parameters():
                parameter.copy_(random_weight(name, parameter.shape, generator))
        self.stored = self.stored.to(dtype)
        self.exact = model_class(self.config).eval()
        self.exact.load_state_dict(self.stored.state_dict())  # rounded to the stored type
        self.exact = self.exact.double()

    @torch.no_grad()
    def logits(self, tokens, record=None):
        hooks = []
        if record:
            for name, module in self.exact.named_modules():
                def hook(_module, _inputs, output, name=name):
                    output = output[0] if isinstance(output, tuple) else output  # [1,...]
                    if not name.endswith(NOT_RECORDED) and torch.is_tensor(output):
                        record(name, output[0])
                hooks.append(module.register_forward_hook(hook))
        logits = self.exact(torch.tensor([tokens])).logits[0]
        for hook in hooks:
            hook.remove()
        if not isinstance(self.config, transformers.GPT2Config):
            weights = dict(self.exact.named_parameters())
            ours = reference_forward(self.config.to_dict(), weights, tokens)
            difference = (ours - logits).abs().max()
            assert difference < 2e-5, f"the reference disagrees: {difference}"
        return logits

    def save(self, directory):
        self.stored.save_pretrained(directory, max_shard_size=self.max_shard_size)
        (directory / "generation_config.json").unlink(missing_ok=True)


class Qwen3Case:
    def __init__(self, config, dtype, generator):
        self.config = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3",
                           torch_dtype=str(dtype).removeprefix("torch."), **config)
        self.stored = {name: random_weight(name, shape, generator).to(dtype)
                       for name, shape in qwen3_shapes(config).items()}
        self.exact = {name: t.double() for name, t in self.stored.items()}

    def logits(self, tokens, record=lambda name, value: None):
        return reference_forward(self.config, self.exact, tokens, record)

    def save(self, directory):
        text = json.dumps(self.config, indent=2, sort_keys=True)
        (directory / "config.json").write_text(text + "\n", encoding="utf-8")
        save_file(self.stored, directory / "model.safetensors", metadata={"format": "pt"})


def make_case(model_type, changes, dtype, max_shard_size, seed):
    generator = torch.Generator().manual_seed(seed)
    config = dict(GPT2 if model_type == "gpt2" else LLAMA, **changes)
    if model_type == "qwen3":
        return Qwen3Case(config, dtype, generator), generator
    return TransformersCase(model_type, config, dtype, max_shard_size, generator), generator


# ---------------------------------------------------------------------------------------------
# What the golden files hold


def greedy(case, prompt):
    """The greedy continuation and the smallest gap between the two best logits on its way."""
    tokens, smallest = list(prompt), math.inf
    for _ in range(N_GREEDY):
        best = torch.topk(case.logits(tokens)[-1], 2)
        smallest = min(smallest, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
    return tokens[len(prompt):], smallest


def prompt_logprobs(logits, prompt):
    """log p(token | tokens before) in float64; the first token has none."""
    table = torch.log_softmax(logits.double(), -1)
    # Rounded, so that the last digit, which can vary with a buffer's alignment, stays out.
    return [None] + [round(table[i, prompt[i + 1]].item(), 12) for i in range(len(prompt) - 1)]


def make_golden(name, seed):
    """(case, golden, rows of logits, partials), or None where the greedy path nearly ties."""
    model_type, changes, dtype, max_shard_size = CASES[name]
    case, generator = make_case(model_type, changes, dtype, max_shard_size, seed)
    vocab_size = (GPT2 if model_type == "gpt2" else LLAMA)["vocab_size"]
    golden = {"name": name, "seed": seed, "stored_dtype": str(dtype).removeprefix("torch."),
              "transformers": transformers.__version__ if model_type != "qwen3" else None,
              "vocab_size": vocab_size, "prompts": []}
    rows, partials, n_rows = [], {}, 0
    for length in PROMPT_LENGTHS:
        prompt = torch.randint(vocab_size, (length,), generator=generator).tolist()
        continuation, gap = greedy(case, prompt)
        if gap < MIN_GAP or len(set(continuation)) < 4:
            return None
        logits = case.logits(prompt)
        golden["prompts"].append({
            "tokens": prompt, "logits_first_row": n_rows, "greedy": continuation,
            "greedy_min_gap": round(gap, 6), "logprobs": prompt_logprobs(logits, prompt)})
        rows.append(logits.float().numpy())
        n_rows += length
    golden["logits_rows"] = n_rows
    case.logits(golden["prompts"][1]["tokens"],
                lambda name, value: partials.update({name: value.float().contiguous().clone()}))
    return case, golden, np.concatenate(rows), partials


def write_golden(directory, case, golden, logits, partials):
    directory.mkdir(parents=True, exist_ok=True)
    for file in filter(Path.is_file, directory.iterdir()):  # folders in it are other scripts'
        file.unlink()
    case.save(directory)
    text = json.dumps(golden, indent=1)
    (directory / "golden.json").write_text(text + "\n", encoding="utf-8")
    (directory / "logits.f32").write_bytes(logits.astype("<f4").tobytes())
    save_file(partials, directory / "partials.safetensors")
    for file in filter(Path.is_file, directory.iterdir()):
        file.chmod(0o644)  # safetensors makes its files private


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    parser.add_argument("--only", nargs="*", choices=CASES, help="these cases alone")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one order of additions
    for name in args.only or CASES:
        result = next(filter(None, (make_golden(name, seed) for seed in range(1, 100))))
        write_golden(args.out / name, *result)
        golden = result[1]
        size = sum(f.stat().st_size for f in (args.out / name).iterdir())
        gaps = [p["greedy_min_gap"] for p in golden["prompts"]]
        print(f"{name}: seed {golden['seed']}, logits to ±{np.abs(result[2]).max():.1f}, "
              f"smallest gaps {gaps}, {size:,} bytes")


if __name__ == "__main__":
    main()
