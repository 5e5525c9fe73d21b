#!/usr/bin/env python3
"""torch beside gptd, for scripts/gpu_check.sh: the same small models for their numbers, the same
presets for speed. Prints results as bench.h says.

    bench_torch.py parity DIR             what `bench_gpu ... parity DIR` left, in float64
    bench_torch.py rates                  products and copies
    bench_torch.py decode PRESET BATCH... one CUDA graph a step, static cache, SDPA, bf16
    bench_torch.py train PRESET...        bf16 autocast, SDPA, fused AdamW; --compile
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 500, "block_size": 64,
         "batch_size": 2}


def report(section, name, value, unit, note=""):
    print(f"RESULT\t{section}\t{name}\t{value:.6g}\t{unit}\t{note}", flush=True)


# ---- numbers ----

def read_dump(folder):
    values = {}
    for line in (folder / "index.txt").read_text().splitlines():
        name, rows, cols = line.split()
        data = (folder / f"{name}.f32").read_bytes()
        flat = torch.frombuffer(bytearray(data), dtype=torch.float32)
        values[name] = flat.reshape(int(rows), int(cols)).double()
    return values


def rotate(x, base=10000.0):
    """x [B, H, T, K], as Llama does it: the halves of a head are the two coordinates."""
    T, half = x.shape[2], x.shape[3] // 2
    angle = torch.arange(T)[:, None] * base ** (-torch.arange(half).double() / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


class Reference:
    """The decoder of gptd's config words, from its weights by their roles' names."""

    def __init__(self, config, w):
        self.c, self.w = config, w
        self.K = config["n_embd"] // config["n_head"]
        self.G = config.get("n_kv_head", config["n_head"])

    def get(self, role, layer=0):
        return self.w.get(f"w.{role}.{layer}")

    def norm(self, x, role, layer=0):
        weight, bias = self.get(role, layer), self.get(role + "_bias", layer)
        if self.c.get("norm_type") == "rmsnorm":
            eps = 1e-5
            return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight[0]
        return F.layer_norm(x, x.shape[-1:], weight[0], None if bias is None else bias[0], 1e-5)

    def linear(self, x, role, layer=0):
        bias = self.get(role + "_bias", layer)
        return F.linear(x, self.get(role, layer), None if bias is None else bias[0])

    def heads(self, x, n):
        return x.unflatten(-1, (n, self.K)).transpose(1, 2)

    def attention(self, h, l):
        H, G, K = self.c["n_head"], self.G, self.K
        q, k, v = self.linear(h, "qkv", l).split([H * K, G * K, G * K], -1)
        q, k, v = self.heads(q, H), self.heads(k, G), self.heads(v, G)
        if self.c.get("qk_norm"):
            q, k = self.norm(q, "q_norm", l), self.norm(k, "k_norm", l)
        if self.c.get("pos_encoding") == "rope":
            q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(H // G, 1) for t in (k, v))
        T = h.shape[1]
        scores = q @ k.transpose(2, 3) * K ** -0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), "attn_out", l)

    def mlp(self, h, l):
        up = self.linear(h, "mlp_up", l)
        if self.c.get("mlp_type") == "swiglu":
            gate, up = up.chunk(2, -1)
            return self.linear(F.silu(gate) * up, "mlp_down", l)
        # tanh's form, which older torch's gelu lacks in double
        z = math.sqrt(2 / math.pi) * (up + 0.044715 * up ** 3)
        return self.linear(0.5 * up * (1 + torch.tanh(z)), "mlp_down", l)

    def logits(self, tokens):
        x = self.get("token_embedding")[tokens]
        if self.get("position_embedding") is not None:
            x = x + self.get("position_embedding")[:tokens.shape[1]]
        for l in range(self.c["n_layer"]):
            x = x + self.attention(self.norm(x, "attn_norm", l), l)
            x = x + self.mlp(self.norm(x, "mlp_norm", l), l)
        head = self.get("lm_head")
        if head is None:
            head = self.get("token_embedding")
        return F.linear(self.norm(x, "final_norm"), head)


def distance(got, want):
    return ((got - want).norm() / want.norm().clamp_min(1e-300)).item()


def parity(root):
    bad = 0
    for folder in sorted(p.parent for p in root.glob("*/index.txt")):
        config = json.loads((folder / "config.json").read_text())
        values = read_dump(folder)
        for name, value in values.items():
            value.requires_grad_(name.startswith("w."))
        model = Reference(config, values)
        logits = model.logits(values["tokens"].long())
        F.cross_entropy(logits.flatten(0, 1), values["targets"].long().flatten()).backward()
        rows = {"logits": ("", distance(values["logits"].reshape(logits.shape), logits))}
        worst = max((distance(values["g" + name[1:]], value.grad), name[2:])
                    for name, value in values.items() if name.startswith("w."))
        rows["gradients"] = (f", most in {worst[1]}", worst[0])
        for what, (where, value) in rows.items():
            ok = value <= 1e-4
            bad += not ok
            report("parity", f"{folder.name} f32 {what} against torch float64", value,
                   "ok" if ok else "FAILED", f"relative distance{where}, allowed 0.0001")
    return bad


# ---- speed ----

def sync(device):
    if device == "cuda":
        torch.cuda.synchronize()


def fastest(device, work, seconds=0.3):
    work()
    sync(device)
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        begin = time.perf_counter()
        work()
        sync(device)
        best = min(best, time.perf_counter() - begin)
    return best


def rates(device, small):
    n = 256 if small else 8192
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    rate = 2 * n ** 3 / fastest(device, lambda: a @ b)
    report("torch", f"bf16 product {n}x{n}x{n}", rate * 1e-12, "TFLOP/s")
    x = torch.randint(1 << 30, (1 << 12 if small else 1 << 29,), dtype=torch.int32, device=device)
    y = torch.empty_like(x)
    report("torch", "copy", 8 * x.numel() / fastest(device, lambda: y.copy_(x)) * 1e-9, "GB/s")


class Norm(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight)


class Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.C, self.H = C, H
        self.ln_1, self.ln_2 = Norm(C), Norm(C)
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.fc, self.fc_proj = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def split(self, x):
        B, T, _ = x.shape
        return (p.view(B, T, self.H, self.C // self.H).transpose(1, 2)
                for p in self.qkv(self.ln_1(x)).split(self.C, 2))

    def forward(self, x, attend):
        y = attend(*self.split(x))
        x = x + self.proj(y.transpose(1, 2).reshape(x.shape))
        return x + self.fc_proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        V, C = c["vocab_size"], c["n_embd"]
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(c["block_size"], C)
        self.blocks = nn.ModuleList(Block(C, c["n_head"]) for _ in range(c["n_layer"]))
        self.ln_f = Norm(C)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x, causal)
        return F.linear(self.ln_f(x), self.wte.weight)


def read_preset(path, small):
    c = json.loads(Path(path).read_text())
    c["vocab_size"] = c.get("vocab_size") or 65
    return {**c, **SMALL} if small else c


def train(device, path, small, compiled, steps):
    c = read_preset(path, small)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = GPT(c).to(device)
    run = torch.compile(model) if compiled else model
    fused = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **fused)
    B, T, V = c["batch_size"], c["block_size"], c["vocab_size"]
    times = []
    for _ in range(steps + 3):
        tokens = torch.randint(V, (B, T + 1), device=device)
        sync(device)
        begin = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = run(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        sync(device)
        times.append(time.perf_counter() - begin)
    median = sorted(times[3:])[steps // 2]
    peak = f", peak {torch.cuda.max_memory_allocated() * 1e-9:.2f} GB" if device == "cuda" else ""
    report("torch", f"train {Path(path).stem}{' compiled' if compiled else ''}", B * T / median,
           "tok/s", f"B {B} T {T}, {1e3 * median:.2f} ms a step{peak}")


@torch.no_grad()
def decode(device, path, small, batch):
    c = read_preset(path, small)
    model = GPT(c).to(device=device, dtype=torch.bfloat16)
    H, K, S = c["n_head"], c["n_embd"] // c["n_head"], 32 if small else 128
    caches = [torch.randn(2, batch, H, S, K, device=device).bfloat16() for _ in model.blocks]
    tokens = torch.randint(c["vocab_size"], (batch, 1), device=device)
    place = torch.full((1,), S // 2, device=device)
    reach = torch.arange(S, device=device)

    def step():
        mask = (reach <= place)[None, None, None]
        x = model.wte(tokens) + model.wpe(place)
        for block, cache in zip(model.blocks, caches):
            def attend(q, k, v, cache=cache):
                cache[0].index_copy_(2, place, k)
                cache[1].index_copy_(2, place, v)
                return F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=mask)
            x = block(x, attend)
        tokens.copy_(F.linear(model.ln_f(x), model.wte.weight)[:, -1].argmax(-1, keepdim=True))

    run = step
    if device == "cuda":
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run = graph.replay

    def many():
        for _ in range(20):
            run()
    seconds = fastest(device, many) / 20
    report("torch", f"decode {Path(path).stem} batch {batch} context {S}", batch / seconds, "tok/s",
           f"{1e3 * seconds:.3f} ms a step, one CUDA graph")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny shapes: only to try the script")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("command", choices=["parity", "rates", "decode", "train"])
    parser.add_argument("arguments", nargs="*")
    args = parser.parse_args()
    if args.command == "parity":
        return parity(Path(args.arguments[0]))
    if args.command == "rates":
        rates(args.device, args.small)
    elif args.command == "train":
        for path in args.arguments:
            train(args.device, path, args.small, args.compile, args.steps)
    else:
        for batch in args.arguments[1:]:
            decode(args.device, args.arguments[0], args.small, int(batch))
    return 0


if __name__ == "__main__":
    sys.exit(min(main(), 1))
