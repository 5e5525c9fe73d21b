#!/usr/bin/env python3
"""Makes tests/golden/*/grads/: the gradients of a loss, which the backward pass is checked against.

For some of the golden models (make_goldens.py), the loss is the mean of -log p over the longest
golden prompt, every token but the first predicted from those before. Gradients are autograd's, in
float64, and each tensor's is checked here against central differences of the float64 loss along
three random directions. They are stored as float32 in the layout of the model's own weights (a
config.json and a model.safetensors), so that whatever reads the weights reads the gradients.

Needs what make_goldens.py needs.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from make_goldens import reference_forward

CASES = ("gpt2", "gpt2_untied", "llama", "qwen2", "qwen3")
STEP = 1e-6
TOLERANCE = 1e-6  # relative, of a directional derivative


class Gpt2:
    """The library's GPT-2 in float64, as a function of its weights."""

    def __init__(self, directory):
        self.model = AutoModelForCausalLM.from_pretrained(directory).double().eval()
        self.weights = dict(self.model.named_parameters())

    def logits(self, tokens):
        return self.model(torch.tensor([tokens])).logits[0]


class Llama:
    """The float64 reference of the Llama family."""

    def __init__(self, directory):
        self.config = json.loads((directory / "config.json").read_text())
        stored = load_file(directory / "model.safetensors")
        self.weights = {name: t.double().requires_grad_() for name, t in stored.items()}

    def logits(self, tokens):
        return reference_forward(self.config, self.weights, tokens)


def loss_of(model, tokens):
    logits = model.logits(tokens[:-1])
    return torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]))


def check_directions(model, tokens, gradients, generator):
    """Central differences along random directions agree with the gradients."""
    worst = 0.0
    with torch.no_grad():
        for name, weight in model.weights.items():
            for _ in range(3):
                direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                weight += STEP * direction
                above = loss_of(model, tokens)
                weight -= 2 * STEP * direction
                below = loss_of(model, tokens)
                weight += STEP * direction
                slope = ((above - below) / (2 * STEP)).item()
                exact = (gradients[name] * direction).sum().item()
                scale = max(abs(exact), gradients[name].norm().item())
                worst = max(worst, abs(slope - exact) / scale)
    assert worst < TOLERANCE, f"differences disagree with autograd: {worst}"
    return worst


def make(directory):
    golden = json.loads((directory / "golden.json").read_text())
    tokens = max((p["tokens"] for p in golden["prompts"]), key=len)
    config = json.loads((directory / "config.json").read_text())
    model = (Gpt2 if config["model_type"] == "gpt2" else Llama)(directory)
    loss = loss_of(model, tokens)
    loss.backward()
    gradients = {name: w.grad for name, w in model.weights.items()}
    worst = check_directions(model, tokens, gradients, torch.Generator().manual_seed(1))
    out = directory / "grads"
    if out.exists():
        shutil.rmtree(out)
    out.mkdir()
    config.update(torch_dtype="float32", gptd_loss=loss.item(), gptd_tokens=len(tokens))
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file({name: g.float().contiguous() for name, g in gradients.items()},
              out / "model.safetensors", metadata={"format": "pt"})
    print(f"{directory.name}: loss {loss.item():.6f}, differences agree to {worst:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--golden", type=Path, default=Path("tests/golden"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in CASES:
        make(args.golden / name)


if __name__ == "__main__":
    main()
