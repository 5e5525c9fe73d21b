#!/usr/bin/env python3
"""Import a nanoGPT checkpoint as a Hugging Face GPT-2 directory, which gptd and transformers load.

    python3 scripts/import_nanogpt.py out/ckpt.pt --out models/mine --meta data/NAME/meta.pkl
    python3 scripts/import_nanogpt.py out/ckpt.pt --out models/mine --gpt2-tokenizer DIR
    python3 scripts/import_nanogpt.py --self-test --gptd build/gptd

What is assumed of the file (karpathy/nanoGPT, train.py and model.py):

- a dictionary; `model` is the state dictionary, `model_args` has n_layer, n_head, n_embd,
  block_size, bias, vocab_size
- tensors `transformer.wte.weight`, `transformer.wpe.weight`, `transformer.h.N.ln_1.weight`,
  `.attn.c_attn.weight` (queries, keys and values below each other, [3C, C] as nn.Linear has it),
  `.attn.c_proj.weight`, `.ln_2.weight`, `.mlp.c_fc.weight`, `.mlp.c_proj.weight`,
  `transformer.ln_f.weight`, `lm_head.weight` (the same tensor as wte); `.bias` beside each but wte,
  wpe and lm_head when bias is true; `_orig_mod.` before every name after torch.compile;
  `.attn.bias`, the causal mask, in versions without flash attention
- LayerNorm with epsilon 1e-5; the exact GELU (`--activation gelu_new` for the versions of before
  April 2023, which had the tanh form)

GPT-2 has biases everywhere: a model without gets zeros. A model on characters finds its alphabet in
meta.pkl; one on GPT-2's tokens needs vocab.json and merges.txt. Without either the
directory has no tokenizer, and gptd takes token ids. Needs torch and numpy.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import import_common as common


def convert_layer(weights, i, n_embd):
    """Tensors of one layer; Conv1D stores the transpose of nn.Linear."""
    source = target = f"transformer.h.{i}."
    out = {}
    for name in ("ln_1", "ln_2"):
        out[f"{target}{name}.weight"] = weights.take(f"{source}{name}.weight", n_embd)
        out[f"{target}{name}.bias"] = weights.take_or_zeros(f"{source}{name}.bias", n_embd)
    for name, n_out, n_in in (("attn.c_attn", 3 * n_embd, n_embd), ("attn.c_proj", n_embd, n_embd),
                              ("mlp.c_fc", 4 * n_embd, n_embd), ("mlp.c_proj", n_embd, 4 * n_embd)):
        matrix = weights.take(f"{source}{name}.weight", n_out, n_in)
        out[f"{target}{name}.weight"] = matrix.t().contiguous()
        out[f"{target}{name}.bias"] = weights.take_or_zeros(f"{source}{name}.bias", n_out)
    return out


def convert(checkpoint, where, activation):
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        common.fail(f"{where}: not a nanoGPT checkpoint: it lacks model and model_args")
    a = checkpoint["model_args"]
    n_embd, vocab, context = a["n_embd"], a["vocab_size"], a["block_size"]
    weights = common.Weights(checkpoint["model"], where, needless=(".attn.bias",))
    out = {"transformer.wte.weight": weights.take("transformer.wte.weight", vocab, n_embd),
           "transformer.wpe.weight": weights.take("transformer.wpe.weight", context, n_embd)}
    for i in range(a["n_layer"]):
        out.update(convert_layer(weights, i, n_embd))
    out["transformer.ln_f.weight"] = weights.take("transformer.ln_f.weight", n_embd)
    out["transformer.ln_f.bias"] = weights.take_or_zeros("transformer.ln_f.bias", n_embd)
    head = weights.take("lm_head.weight", vocab, n_embd)
    tied = torch.equal(head, out["transformer.wte.weight"])
    if not tied:
        out["lm_head.weight"] = head
    weights.finish()
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab,
        "n_layer": a["n_layer"], "n_head": a["n_head"], "n_embd": n_embd, "n_inner": 4 * n_embd,
        "n_positions": context, "n_ctx": context, "activation_function": activation,
        "layer_norm_epsilon": 1e-5, "resid_pdrop": a.get("dropout", 0.0),
        "embd_pdrop": a.get("dropout", 0.0), "attn_pdrop": a.get("dropout", 0.0),
        "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": None,
    }
    return config, out


def write_tokenizer(args):
    if args.meta:
        meta = common.load_plain_pickle(args.meta)
        if not isinstance(meta, dict) or not isinstance(meta.get("stoi"), dict):
            common.fail(f"{args.meta}: it has no stoi, the dictionary from characters to ids")
        common.write_char_tokenizer(args.out, meta["stoi"])
    elif args.gpt2_tokenizer:
        added = common.write_gpt2_tokenizer(args.out, args.gpt2_tokenizer, {})
        common.write_markers(args.out, added["<|endoftext|>"])


def run(args):
    checkpoint = common.load_checkpoint(args.checkpoint, args.trust)
    config, tensors = convert(checkpoint, args.checkpoint, args.activation)
    common.write_model(args.out, config, tensors, common.DTYPES.get(args.dtype))
    write_tokenizer(args)
    print(f"{args.out}: {config['n_layer']} layers, width {config['n_embd']}, "
          f"{sum(t.numel() for t in tensors.values()):,} parameters")


# ---- Self-test: the assumed model, written down as briefly as it goes ----


class Norm(nn.Module):
    def __init__(self, n, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.bias = nn.Parameter(torch.zeros(n)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5)


class Layer(nn.Module):
    def __init__(self, a):
        super().__init__()
        c, bias = a["n_embd"], a["bias"]
        self.n_head = a["n_head"]
        self.ln_1, self.ln_2 = Norm(c, bias), Norm(c, bias)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(c, 3 * c, bias),
                                   "c_proj": nn.Linear(c, c, bias)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(c, 4 * c, bias),
                                  "c_proj": nn.Linear(4 * c, c, bias)})

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.n_head, -1).transpose(1, 2)
                   for part in self.attn["c_attn"](self.ln_1(x)).split(c, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(c // self.n_head)
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Model(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(a["vocab_size"], a["n_embd"]),
            "wpe": nn.Embedding(a["block_size"], a["n_embd"]),
            "h": nn.ModuleList(Layer(a) for _ in range(a["n_layer"])),
            "ln_f": Norm(a["n_embd"], a["bias"])})
        self.lm_head = nn.Linear(a["n_embd"], a["vocab_size"], bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[1]]
        for layer in self.transformer["h"]:
            x = layer(x)
        return self.lm_head(self.transformer["ln_f"](x))


def self_test(args):
    common.check_refuses_code()
    import pickle
    chars = sorted("\n !'abcdefghijklmnopqrstuvwxyzé漢")
    for bias, compiled in ((True, False), (False, True)):
        a = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "bias": bias,
             "vocab_size": len(chars), "dropout": 0.0}
        model = Model(a)
        common.randomize(model, seed=1)
        state = {("_orig_mod." if compiled else "") + n: t for n, t in model.state_dict().items()}
        for i in range(a["n_layer"] if bias else 0):
            state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
        with common.temporary_directory() as folder:
            folder = Path(folder)
            torch.save({"model": state, "model_args": a, "iter_num": 5, "config": {"device": "cpu"},
                        "best_val_loss": torch.tensor(1.5), "optimizer": {}}, folder / "ckpt.pt")
            (folder / "meta.pkl").write_bytes(pickle.dumps(
                {"vocab_size": len(chars), "stoi": {c: i for i, c in enumerate(chars)},
                 "itos": dict(enumerate(chars))}))
            args.checkpoint, args.out = folder / "ckpt.pt", folder / "model"
            args.meta = folder / "meta.pkl"
            run(args)
            common.check_with_gptd(args.gptd, args.out, model, chars, 24,
                                   "with biases" if bias else "without biases")


def main():
    p = common.parser(__doc__, "ckpt.pt")
    p.add_argument("--meta", type=Path, help="meta.pkl of a model on characters")
    p.add_argument("--activation", choices=("gelu", "gelu_new"), default="gelu")
    common.main(p, run, self_test)


if __name__ == "__main__":
    main()
