#!/usr/bin/env python3
"""Import a MyPT checkpoint as a directory that gptd loads.

    python3 scripts/import_mypt.py checkpoints/NAME --out models/NAME [--gpt2-tokenizer DIR]
    python3 scripts/import_mypt.py --self-test --gptd build/gptd

What is assumed of the checkpoint folder (chberclaz/MyPT, core/model.py):

- config.json: n_layer, n_head, n_embd, block_size, vocab_size, dropout, tie_weights, and the
  switches pos_encoding (learned | rope), mlp_type (gelu | swiglu), norm_type (layernorm | rmsnorm),
  rope_theta, rope_scale (positions are divided by it)
- model.pt: {"state_dict": ...}, or the state dictionary itself, with
  `token_embedding_table.weight`, `position_embedding_table.weight` (learned positions alone),
  `blocks.N.ln1.weight`, `.sa.qkv.weight` (queries, keys and values below each other, [3C, C]),
  `.sa.proj.weight`, `.ln2.weight`, `ln_f.weight`, `lm_head.weight`, `lm_head.bias`; and of the MLP
  either `.fwd.net.0` and `.fwd.net.2` with weight and bias (exact GELU), or `.fwd.w_gate.weight`,
  `.fwd.w_up.weight`, `.fwd.w_down.weight` (SwiGLU). Layer norms have biases, epsilon 1e-5; RMSNorm
  has none, epsilon 1e-6. Biases of qkv and proj count where the file has them
- RoPE turns the first half of a head with the second, as Llama in transformers does
- tokenizer.json: {"token_kind": "char", "chars": [...]} or {"token_kind": "gpt2",
  "special_token_encoder": {text: id}}

No family of transformers has a bias at the output, so that the directory speaks gptd's own words
(model_type "gptd"). Where that bias is zero it is left out: then `gptd convert` makes a Llama or
a GPT-2 of the directory, if the other switches are theirs. The first versions of MyPT (a module for
each head, ReLU) are refused. GPT-2's tokens need vocab.json and merges.txt; without them the
directory has no tokenizer, and gptd takes token ids. Needs torch and numpy.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import import_common as common


def swiglu_width(n_embd):
    return (8 * n_embd // 3 + 63) // 64 * 64


def convert_mlp(weights, source, target, config):
    c, f = config["n_embd"], config["n_ff"]
    if config["mlp_type"] == "swiglu":
        gate, up = (weights.take(f"{source}fwd.{name}.weight", f, c) for name in ("w_gate", "w_up"))
        return {f"{target}mlp_up": torch.cat((gate, up)),
                f"{target}mlp_down": weights.take(f"{source}fwd.w_down.weight", c, f)}
    return {f"{target}mlp_up": weights.take(f"{source}fwd.net.0.weight", f, c),
            f"{target}mlp_up_bias": weights.take(f"{source}fwd.net.0.bias", f),
            f"{target}mlp_down": weights.take(f"{source}fwd.net.2.weight", c, f),
            f"{target}mlp_down_bias": weights.take(f"{source}fwd.net.2.bias", c)}


def convert_layer(weights, i, config):
    source, target, c, out = f"blocks.{i}.", f"layers.{i}.", config["n_embd"], {}
    for name, new in (("ln1", "attn_norm"), ("ln2", "mlp_norm")):
        out[f"{target}{new}"] = weights.take(f"{source}{name}.weight", c)
        if config["bias_norm"]:
            out[f"{target}{new}_bias"] = weights.take(f"{source}{name}.bias", c)
    for name, new, n in (("sa.qkv", "qkv", 3 * c), ("sa.proj", "attn_out", c)):
        out[f"{target}{new}"] = weights.take(f"{source}{name}.weight", n, c)
        if config[f"bias_{new}"]:
            out[f"{target}{new}_bias"] = weights.take(f"{source}{name}.bias", n)
    return {**out, **convert_mlp(weights, source, target, config)}


def gptd_config(mypt, weights, where):
    """The model in gptd's words (model/config.h)."""
    def switch(key, default, values):
        value = mypt.get(key, default)
        if value not in values:
            common.fail(f"{where}: {key} is {value!r}; {' and '.join(values)} are known")
        return values[value]

    n_embd = mypt["n_embd"]
    config = {
        "n_layer": mypt["n_layer"], "n_head": mypt["n_head"], "n_embd": n_embd,
        "vocab_size": mypt["vocab_size"], "block_size": mypt["block_size"],
        "pos_encoding": switch("pos_encoding", "learned", {"learned": "learned", "rope": "rope"}),
        "mlp_type": switch("mlp_type", "gelu", {"gelu": "gelu_exact", "swiglu": "swiglu"}),
        "norm_type": switch("norm_type", "layernorm",
                            {"layernorm": "layernorm", "rmsnorm": "rmsnorm"}),
        "dropout": mypt.get("dropout", 0.0), "tie_weights": bool(mypt.get("tie_weights", False)),
        "bias_qkv": weights.has("blocks.0.sa.qkv.bias"),
        "bias_attn_out": weights.has("blocks.0.sa.proj.bias"),
    }
    config["n_ff"] = swiglu_width(n_embd) if config["mlp_type"] == "swiglu" else 4 * n_embd
    config["bias_mlp"] = config["mlp_type"] != "swiglu"
    config["bias_norm"] = config["norm_type"] == "layernorm"
    config["norm_eps"] = 1e-5 if config["norm_type"] == "layernorm" else 1e-6
    if config["pos_encoding"] == "rope":
        config["rope_theta"] = mypt.get("rope_theta", 10000.0)
        scale = mypt.get("rope_scale", 1.0) or 1.0
        if scale != 1.0:
            config.update(rope_scaling="linear", rope_factor=scale)
    return config


def convert(mypt, state, where):
    if any(".sa.heads." in name for name in state):
        common.fail(f"{where}: a first version of MyPT, with a module for each head and ReLU, "
                    "which gptd does not compute")
    weights = common.Weights(state, where, needless=("rope_cos", "rope_sin"))
    config = gptd_config(mypt, weights, where)
    c, vocab = config["n_embd"], config["vocab_size"]
    out = {"token_embedding": weights.take("token_embedding_table.weight", vocab, c)}
    if config["pos_encoding"] == "learned":
        out["position_embedding"] = weights.take("position_embedding_table.weight",
                                                 config["block_size"], c)
    for i in range(config["n_layer"]):
        out.update(convert_layer(weights, i, config))
    out["final_norm"] = weights.take("ln_f.weight", c)
    if config["bias_norm"]:
        out["final_norm_bias"] = weights.take("ln_f.bias", c)
    head = weights.take("lm_head.weight", vocab, c)
    if not config["tie_weights"]:
        out["lm_head"] = head
    bias = weights.take_or_zeros("lm_head.bias", vocab)
    config["bias_lm_head"] = bool(bias.any())
    if config["bias_lm_head"]:
        out["lm_head_bias"] = bias
    weights.finish()
    return config, out


def write_tokenizer(args, source):
    path = source / "tokenizer.json"
    state = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if state.get("token_kind") == "char":
        common.write_char_tokenizer(args.out, {c: i for i, c in enumerate(state["chars"])})
    elif args.gpt2_tokenizer:
        added = common.write_gpt2_tokenizer(args.out, args.gpt2_tokenizer,
                                            state.get("special_token_encoder", {}))
        common.write_markers(args.out, added.get("<myPT_eot>", added["<|endoftext|>"]))


def run(args):
    source = args.checkpoint
    if not (source / "config.json").is_file() or not (source / "model.pt").is_file():
        common.fail(f"{source}: not a MyPT checkpoint: it lacks config.json or model.pt")
    mypt = json.loads((source / "config.json").read_text("utf-8"))
    state = common.load_checkpoint(source / "model.pt", args.trust)
    config, tensors = convert(mypt, state.get("state_dict", state), source / "model.pt")
    common.write_model(args.out, {
        "architectures": ["GptdForCausalLM"], "model_type": "gptd", "gptd": config,
        "vocab_size": config["vocab_size"], "tie_word_embeddings": config["tie_weights"],
        "bos_token_id": None, "eos_token_id": None}, tensors, common.DTYPES.get(args.dtype))
    write_tokenizer(args, source)
    print(f"{args.out}: {config['n_layer']} layers, width {config['n_embd']}, "
          f"{sum(t.numel() for t in tensors.values()):,} parameters")


# ---- Self-test: the assumed model, written down as briefly as it goes ----


class RMSNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return x / (x * x).mean(-1, keepdim=True).add(1e-6).sqrt() * self.weight


class SwiGLU(nn.Module):
    def __init__(self, c):
        super().__init__()
        f = swiglu_width(c)
        self.w_gate, self.w_up = nn.Linear(c, f, False), nn.Linear(c, f, False)
        self.w_down = nn.Linear(f, c, False)

    def forward(self, x):
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))


class GELU(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))

    def forward(self, x):
        return self.net(x)


def rotate(x, a):
    """x [B, H, T, K]; the pairs are (i, i + K/2)."""
    half = x.shape[-1] // 2
    freqs = a["rope_theta"] ** (-torch.arange(half) / half)
    angles = torch.arange(x.shape[2])[:, None] / a["rope_scale"] * freqs
    low, high = x[..., :half], x[..., half:]
    return torch.cat((low * angles.cos() - high * angles.sin(),
                      high * angles.cos() + low * angles.sin()), -1)


class Layer(nn.Module):
    def __init__(self, a):
        super().__init__()
        c, norm = a["n_embd"], RMSNorm if a["norm_type"] == "rmsnorm" else nn.LayerNorm
        self.a, self.ln1, self.ln2 = a, norm(c), norm(c)
        self.sa = nn.ModuleDict({"qkv": nn.Linear(c, 3 * c, a["bias"]),
                                 "proj": nn.Linear(c, c, a["bias"])})
        self.fwd = SwiGLU(c) if a["mlp_type"] == "swiglu" else GELU(c)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.a["n_head"], -1).transpose(1, 2)
                   for part in self.sa["qkv"](self.ln1(x)).split(c, dim=2))
        if self.a["pos_encoding"] == "rope":
            q, k = rotate(q, self.a), rotate(k, self.a)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
        x = x + self.sa["proj"]((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))
        return x + self.fwd(self.ln2(x))


class Model(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.a = a
        self.token_embedding_table = nn.Embedding(a["vocab_size"], a["n_embd"])
        if a["pos_encoding"] == "learned":
            self.position_embedding_table = nn.Embedding(a["block_size"], a["n_embd"])
        self.blocks = nn.ModuleList(Layer(a) for _ in range(a["n_layer"]))
        norm = RMSNorm if a["norm_type"] == "rmsnorm" else nn.LayerNorm
        self.ln_f = norm(a["n_embd"])
        self.lm_head = nn.Linear(a["n_embd"], a["vocab_size"])
        if a["tie_weights"]:
            self.lm_head.weight = self.token_embedding_table.weight

    def forward(self, ids):
        x = self.token_embedding_table(ids)
        if self.a["pos_encoding"] == "learned":
            x = x + self.position_embedding_table.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def self_test(args):
    common.check_refuses_code()
    chars = sorted("\n !'abcdefghijklmnopqrstuvwxyzé漢")
    base = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "vocab_size": len(chars),
            "dropout": 0.0, "bias": False, "rope_theta": 500.0, "rope_scale": 1.0}
    plain = {"pos_encoding": "learned", "mlp_type": "gelu", "norm_type": "layernorm"}
    modern = {"pos_encoding": "rope", "mlp_type": "swiglu", "norm_type": "rmsnorm"}
    cases = {
        "GPT-2 style": {**plain, "tie_weights": False},
        "with biases, tied": {**plain, "bias": True, "tie_weights": True},
        "Llama style": {**modern, "tie_weights": True},
        "Llama style, longer context": {**modern, "tie_weights": False, "rope_scale": 4.0},
        "mixed": {**plain, "norm_type": "rmsnorm", "mlp_type": "swiglu", "tie_weights": False},
    }
    for i, (name, switches) in enumerate(cases.items()):
        a = {**base, **switches}
        model = Model(a)
        common.randomize(model, seed=i)
        with common.temporary_directory() as folder:
            args.checkpoint, args.out = Path(folder) / "checkpoint", Path(folder) / "model"
            args.checkpoint.mkdir()
            (args.checkpoint / "config.json").write_text(json.dumps(a))
            (args.checkpoint / "tokenizer.json").write_text(
                json.dumps({"token_kind": "char", "chars": chars}))
            state = model.state_dict()
            torch.save({"state_dict": state, "checkpoint_dtype": None} if i % 2 else state,
                       args.checkpoint / "model.pt")
            run(args)
            common.check_with_gptd(args.gptd, args.out, model, chars, 24, name)


def main():
    p = common.parser(__doc__, "folder of model.pt and config.json")
    common.main(p, run, self_test)


if __name__ == "__main__":
    main()
