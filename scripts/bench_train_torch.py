#!/usr/bin/env python3
"""GPT-2 124M in torch, as one writes it without tricks: a peer of scripts/bench_train.py, which
runs it. Prints what each step took, until it is ended."""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn

L, H, C, V, T_MAX, B, T = 12, 12, 768, 50257, 1024, 4, 64


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fc_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.register_buffer("future", torch.ones(T, T).triu(1).bool(), persistent=False)

    def forward(self, x):
        q, k, v = (part.view(B, T, H, C // H).transpose(1, 2)
                   for part in self.qkv(self.ln_1(x)).split(C, dim=2))
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(2, 3)) * (C // H) ** -0.5
            y = torch.softmax(scores.masked_fill(self.future, -torch.inf), -1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.fc_proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T_MAX, C)
        self.blocks, self.ln_f = nn.Sequential(*(Block() for _ in range(L))), nn.LayerNorm(C)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight[:T]
        return F.linear(self.ln_f(self.blocks(x)), self.wte.weight)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["f32", "bf16"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = GPT()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                   {"params": vectors, "weight_decay": 0}], lr=1e-4)
    print(f"torch {torch.__version__}, {sum(p.numel() for p in model.parameters()):,} parameters")
    for step in range(args.steps):
        tokens = torch.randint(V, (B, T + 1))
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.4f} (took "
              f"{1e3 * (time.perf_counter() - begin):.1f} ms)", flush=True)


if __name__ == "__main__":
    main()
