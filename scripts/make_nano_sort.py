#!/usr/bin/env python3
"""Convert the trained nano model that sorts three letters into a Hugging Face GPT-2 directory.

    python3 scripts/make_nano_sort.py --source DIR --out DATA/nano_sort

DIR holds the files of the 3-D visualisation of a GPT by Brendan Bycroft (MIT licence):
`gpt-nano-sort-model.json`, the weights of a minGPT with 3 layers, 3 heads, width 48, vocabulary 3
and block size 11, and `gpt-nano-sort-t0-partials.json`, every tensor of one forward pass of it over
a batch of 3, both as base64 of float32; and their LICENSE. The output is

    config.json, model.safetensors   a GPT-2 (tanh GELU, biases, own lm_head)
    partials.safetensors             the tensors of that pass under their names, f32; `idx` as i32
    LICENSE                          the notice that goes with copies

In the partials `x` is token + position, `ln1` to `mlpResid` belong to the first block, `block0`
to `block2` are the residual stream after each block, `lm_head` the logits. q, k, v are split into
heads [B,H,T,K]; `qkv` is what c_attn gives; `att` is scaled and masked with -inf, `attSm` is after
softmax; `probs` is the softmax of the logits.

Needs torch, safetensors, and transformers to check that it computes the same (see
scripts/README.md for the environment).
"""

import argparse
import base64
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

# minGPT stores these as torch's Linear, [out,in]; GPT-2's Conv1D is [in,out].
LINEARS = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def read_tensor(value):
    data = np.frombuffer(base64.b64decode(value["data"]), dtype="<f4")
    return torch.from_numpy(data.reshape(value["shape"]).copy())


def read_tensors(path):
    """The config and the tensors by name."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return values["config"], {k: read_tensor(v) for k, v in values.items() if k != "config"}


def hugging_face_config(c):
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": c["n_layer"],
        "n_head": c["n_head"],
        "n_embd": c["n_embd"],
        "n_positions": c["block_size"],
        "vocab_size": c["vocab_size"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": c["embd_pdrop"],
        "resid_pdrop": c["resid_pdrop"],
        "attn_pdrop": c["attn_pdrop"],
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": "float32",
    }


def hugging_face_weights(tensors):
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(".attn.bias"):  # the causal mask, a buffer
            continue
        if name.endswith(LINEARS):
            tensor = tensor.T
        weights[name] = tensor.contiguous()
    return weights


def check(out):
    """transformers gives the recorded tensors from the converted model."""
    model = GPT2LMHeadModel.from_pretrained(out).eval()
    partials = load_file(out / "partials.safetensors")
    with torch.no_grad():
        result = model(partials["idx"].long(), output_hidden_states=True, output_attentions=True)
    pairs = {"lm_head": result.logits, "x": result.hidden_states[0], "attSm": result.attentions[0],
             "block0": result.hidden_states[1], "block1": result.hidden_states[2],
             "ln_f": result.hidden_states[3]}
    for name, theirs in pairs.items():
        difference = (theirs - partials[name]).abs().max().item()
        print(f"{name}: {difference:.1e}")
        assert difference < 1e-5, name


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config, tensors = read_tensors(args.source / "gpt-nano-sort-model.json")
    _, partials = read_tensors(args.source / "gpt-nano-sort-t0-partials.json")
    partials["idx"] = partials["idx"].to(torch.int32)
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(hugging_face_config(config), indent=2)
    (args.out / "config.json").write_text(text + "\n", encoding="utf-8")
    weights = hugging_face_weights(tensors)
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    save_file(partials, args.out / "partials.safetensors")
    shutil.copyfile(args.source / "LICENSE", args.out / "LICENSE")
    for file in args.out.iterdir():
        file.chmod(0o644)  # safetensors makes its files private
    check(args.out)


if __name__ == "__main__":
    main()
