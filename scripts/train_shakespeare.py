#!/usr/bin/env python3
"""Train the model that ships with gptd: a small Llama on the plays of Shakespeare.

    python3 scripts/train_shakespeare.py --input tinyshakespeare.txt --out models/shakespeare

The input is the "tiny Shakespeare" text (1.1 MB, public domain). The output is a Hugging Face
directory of less than 8 MB: config.json, model.safetensors (bf16), tokenizer.json,
generation_config.json, and a README.md with the facts of the run.

What happens, in order:

1. The text is split 90/10 by position: training and validation.
2. A byte-level BPE tokenizer is trained on the training part (GPT-2's pre-tokenizer, vocabulary
   1024 with `<|endoftext|>`), so that any UTF-8 text encodes.
3. A Llama (RMSNorm, SwiGLU, RoPE, grouped queries, tied embeddings) learns to predict the next
   token: AdamW, warm-up and cosine, dropout, clipping, in bf16 autocast with f32 weights. An
   exponential moving average of the weights is what gets evaluated and kept; the best one by
   validation loss becomes the model.
4. The result is stored in bf16, loaded back into `transformers` where that is installed, and
   checked: same logits as the model here, and the validation loss of the *stored* weights.

The environment (torch 1.13 or later; on Debian 12 its own packages are enough):

    apt-get install --no-install-recommends python3-torch python3-numpy python3-venv
    /usr/bin/python3 -m venv --system-site-packages torchenv
    torchenv/bin/pip install 'transformers==4.46.3' tokenizers safetensors
    torchenv/bin/python scripts/train_shakespeare.py --input ... --out ...

The committed model is a run with these defaults and one thread of an AMD EPYC, shared with other
work: 1,600 steps, 6,553,600 tokens (15.9 passes over the text), 65 minutes; the last step was the
best, with a loss of 2.86 in training (under dropout) and 3.27 in validation, in nats a token, or
2.09 bits a byte of the validation text. models/shakespeare/README.md, which this script wrote, has
the rest. With dropout 0.25 the loss reached 3.24 after 1,300 steps of 3,000 and stayed there, while
that in training went on falling.
"""

import argparse
import copy
import ctypes
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

END_OF_TEXT = "<|endoftext|>"

# The shape of the model, in the words of Hugging Face's LlamaConfig. 3.2 million parameters.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

GENERATION_CONFIG = {
    "do_sample": True,
    "temperature": 0.8,
    "top_p": 0.95,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "max_length": CONFIG["max_position_embeddings"],
}


# ---------------------------------------------------------------------------------------------
# The tokenizer


def train_tokenizer(text, vocab_size):
    """Byte-level BPE as in GPT-2: every byte has a token, so no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    assert tokenizer.token_to_id(END_OF_TEXT) == CONFIG["eos_token_id"]
    return tokenizer


# ---------------------------------------------------------------------------------------------
# The model. Shapes: B batch, T tokens, C width, H query heads, G key/value heads, K head size.
# Parameter names are those of LlamaForCausalLM, so that state_dict() is the file's content.


def dropout(x, rate, training):
    """As F.dropout with the rate in 256ths. Torch draws masks one number an element on one thread,
    which took a third of the whole step; here every 64-bit draw gives eight elements."""
    if not training or rate == 0:
        return x
    draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    dropped = round(rate * 256)
    kept = draws.view(torch.uint8)[:x.numel()].view(x.shape) >= dropped
    return x * (kept * (256 / (256 - dropped))).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = x.float()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
        return x * scale * self.weight


def rotate(x, cos, sin):
    """Rotary position embedding of x [B,H,T,K]; pairs are (i, i + K/2), as Hugging Face's are."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = (
            c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
        width = c["hidden_size"]
        self.q_proj = nn.Linear(width, self.n_head * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.n_kv_head * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.n_kv_head * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_head * self.head_dim, width, bias=False)

    def forward(self, x, cos, sin, mask):
        B, T, _ = x.shape
        split = lambda y, heads: y.view(B, T, heads, self.head_dim).transpose(1, 2)
        q = rotate(split(self.q_proj(x), self.n_head), cos, sin)  # [B,H,T,K]
        k = rotate(split(self.k_proj(x), self.n_kv_head), cos, sin)  # [B,G,T,K]
        v = split(self.v_proj(x), self.n_kv_head)
        group = self.n_head // self.n_kv_head
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)  # [B,H,T,T]
        weights = torch.softmax(scores.float() + mask, dim=-1)
        y = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(B, T, -1)
        return self.o_proj(y)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c, drop_rate):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"])
        self.mlp = MLP(c)
        self.drop_rate = drop_rate

    def forward(self, x, cos, sin, mask):
        drop = lambda y: dropout(y, self.drop_rate, self.training)
        x = x + drop(self.self_attn(self.input_layernorm(x), cos, sin, mask))
        return x + drop(self.mlp(self.post_attention_layernorm(x)))


class Llama(nn.Module):
    def __init__(self, c, drop_rate):
        super().__init__()
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(c["vocab_size"], c["hidden_size"]),
            "layers": nn.ModuleList(Block(c, drop_rate) for _ in range(c["num_hidden_layers"])),
            "norm": RMSNorm(c["hidden_size"]),
        })
        self.drop_rate = drop_rate
        T, K = c["max_position_embeddings"], c["head_dim"]
        angles = torch.outer(torch.arange(T).float(),
                             c["rope_theta"] ** -(torch.arange(0, K, 2).float() / K))
        self.register_buffer("cos", angles.cos(), persistent=False)  # [T,K/2]
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("mask", torch.full((T, T), -math.inf).triu(1), persistent=False)
        # GPT-2's initialisation: what adds to the residual stream starts smaller.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * c["num_hidden_layers"]) ** -0.5 if residual else 1.0
                nn.init.normal_(parameter, std=0.04 * scale)

    def forward(self, tokens):
        """tokens [B,T] -> logits [B,T,V] f32"""
        T = tokens.shape[1]
        cos, sin, mask = self.cos[:T], self.sin[:T], self.mask[:T, :T]
        embedding = self.model["embed_tokens"]
        x = dropout(embedding(tokens), self.drop_rate, self.training)
        for block in self.model["layers"]:
            x = block(x, cos, sin, mask)
        return F.linear(self.model["norm"](x), embedding.weight).float()


# ---------------------------------------------------------------------------------------------
# Training


@torch.no_grad()
def mean_loss(model, data, block_size, bf16=False):
    """Mean loss over all of `data`, in non-overlapping windows."""
    model.eval()
    total = count = 0
    windows = [data[i:i + block_size + 1] for i in range(0, len(data) - 1, block_size)]
    full = [w for w in windows if len(w) == block_size + 1]
    rest = [w for w in windows if 2 <= len(w) <= block_size]
    for batch in [full[i:i + 16] for i in range(0, len(full), 16)] + [[w] for w in rest]:
        batch = torch.stack(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(batch[:, :-1])
        targets = batch[:, 1:].flatten()
        total += F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
        count += targets.numel()
    return total / count


def learning_rate(step, args):
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def batches(data, args, generator):
    """Endless batches: each epoch starts at a random offset and visits all windows once."""
    T = args.block_size
    while True:
        offset = int(torch.randint(T, (1,), generator=generator))
        starts = torch.arange(offset, len(data) - T - 1, T)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for i in range(0, len(starts) - args.batch_size + 1, args.batch_size):
            yield torch.stack([data[s:s + T + 1] for s in starts[i:i + args.batch_size].tolist()])


def train(model, train_data, val_data, args):
    """Returns the best averaged model by validation loss, and the facts of the run."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay},
         {"params": vectors, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.95), eps=1e-8)
    average = copy.deepcopy(model)
    best, facts = copy.deepcopy(model), {"best_val_loss": math.inf, "history": []}
    source = batches(train_data, args, torch.Generator().manual_seed(args.seed))
    running, seen, start = [], 0, time.monotonic()
    for step in range(args.steps):
        lr = learning_rate(step, args)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = next(source)
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not args.f32):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():  # the average's memory grows from nothing to args.ema
            decay = min(args.ema, (step + 1) / (step + 10))
            for a, p in zip(average.parameters(), model.parameters()):
                a.lerp_(p, 1 - decay)
        running.append(loss.item())
        seen += batch[:, 1:].numel()
        last = step + 1 == args.steps
        if (step + 1) % args.eval_interval == 0 or last:
            val = mean_loss(average, val_data, args.block_size, bf16=not args.f32)
            seconds = time.monotonic() - start
            record = {"step": step + 1, "train_loss": round(float(np.mean(running)), 4),
                      "val_loss": round(val, 4), "lr": round(lr, 7), "tokens": seen,
                      "seconds": round(seconds)}
            print(json.dumps(record), f"{seen / seconds:.0f} tokens/s", flush=True)
            facts["history"].append(record)
            running = []
            if val < facts["best_val_loss"]:
                facts.update(best_val_loss=val, best_step=step + 1, best_tokens=seen)
                best = copy.deepcopy(average)
    facts.update(steps=args.steps, tokens=seen, seconds=time.monotonic() - start)
    return best, facts


@torch.no_grad()
def sample(model, tokenizer, prompt, n_tokens, seed, temperature=0.8, top_p=0.95):
    """Plain sampling with temperature and top-p, for the model card."""
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    ids = tokenizer.encode(prompt).ids
    for _ in range(n_tokens):
        logits = model(torch.tensor([ids[-CONFIG["max_position_embeddings"]:]]))[0, -1]
        probs, order = torch.softmax(logits / temperature, -1).sort(descending=True)
        probs[probs.cumsum(-1) - probs > top_p] = 0
        ids.append(order[torch.multinomial(probs, 1, generator=generator)].item())
        if ids[-1] == CONFIG["eos_token_id"]:
            break
    return tokenizer.decode(ids)


# ---------------------------------------------------------------------------------------------
# Writing and checking


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_in_transformers(out, model, tokens):
    """The stored model gives the same logits in LlamaForCausalLM as here. None: not installed."""
    try:
        from transformers import LlamaForCausalLM
    except ImportError:
        return None
    theirs = LlamaForCausalLM.from_pretrained(out, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        difference = (theirs(tokens).logits - model.eval()(tokens)).abs().max().item()
    assert difference < 1e-3, f"transformers disagrees: {difference}"
    return difference


def cpu_name():
    try:
        for line in open("/proc/cpuinfo", encoding="utf-8"):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


CARD = """\
# Shakespeare, {parameters_m:.2f} million parameters

A small Llama that continues a play. It ships with gptd so that a fresh clone has something to
serve; it knows nothing but the plays it read.

| | |
| --- | --- |
| architecture | Llama: {num_hidden_layers} layers, width {hidden_size}, {num_attention_heads} query heads and {num_key_value_heads} key/value heads of size {head_dim}, SwiGLU {intermediate_size}, RoPE, RMSNorm, tied embeddings |
| context | {max_position_embeddings} tokens |
| parameters | {parameters:,}, stored as bf16 |
| tokenizer | byte-level BPE, {vocab_size} tokens with `<|endoftext|>` (id 0), trained on the training part |
| data | "tiny Shakespeare", {n_bytes:,} bytes, split 90/10 by position: {n_train:,} training and {n_val:,} validation tokens |
| training | AdamW (peak learning rate {lr}, weight decay {weight_decay}), {warmup} steps of warm-up, cosine; dropout {dropout}, none in the attention weights; batches of {batch_size} x {block_size} tokens; bf16 autocast; moving average of the weights, {ema} |
| run | {steps:,} steps, {tokens:,} tokens ({epochs:.1f} passes), {minutes:.0f} minutes, {tokens_per_s:.0f} tokens/s |
| kept | the average of step {best_step:,} ({best_epochs:.1f} passes), the best by validation loss |
| loss at that step | train {train_loss:.4f} (with dropout), validation {val_loss:.4f} per token |
| of the stored bf16 weights | train {stored_train:.4f}, validation {stored_val:.4f} per token (perplexity {perplexity:.2f}); {bits:.3f} bits per byte of validation text |
| machine | {machine}, threads: {threads}; torch {torch_version} |

Losses are in nats. To train it again: `scripts/train_shakespeare.py`.

## A sample

Prompt `{prompt}`, temperature 0.8, top-p 0.95, the first try:

```
{sample}
```

## Licence of the data

The plays of William Shakespeare are in the public domain. The excerpt is the one commonly called
"tiny Shakespeare" (from Andrej Karpathy's char-rnn).
"""


def keep_freed_memory():
    """glibc gives large buffers back to the kernel at each free, which then zeroes them anew at the
    next step: half of the time. Tell it to keep them (M_MMAP_MAX = 0, M_TRIM_THRESHOLD = never)."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)
        libc.mallopt(-1, -1)
    except (OSError, AttributeError):
        pass  # not glibc: only slower


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", type=Path, required=True, help="the text, UTF-8")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.2)
    parser.add_argument("--dropout", type=float, default=0.35)
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the moving average")
    parser.add_argument("--eval-interval", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--f32", action="store_true", help="no bf16 autocast")
    args = parser.parse_args()
    args.block_size = CONFIG["max_position_embeddings"]
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    text = args.input.read_bytes().decode("utf-8")
    cut = len(text) * 9 // 10
    tokenizer = train_tokenizer(text[:cut], CONFIG["vocab_size"])
    train_data = torch.tensor(tokenizer.encode(text[:cut]).ids)
    val_data = torch.tensor(tokenizer.encode(text[cut:]).ids)
    assert tokenizer.decode(val_data.tolist()) == text[cut:]
    model = Llama(CONFIG, args.dropout)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(train_data):,} + {len(val_data):,} tokens", flush=True)

    best, facts = train(model, train_data, val_data, args)

    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "config.json", CONFIG)
    write_json(args.out / "generation_config.json", GENERATION_CONFIG)
    tokenizer.save(str(args.out / "tokenizer.json"))
    state = {name: p.detach().to(torch.bfloat16) for name, p in best.named_parameters()}
    save_file(state, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "model.safetensors").chmod(0o644)  # safetensors makes it private

    # From here on with the weights as stored.
    stored = load_file(args.out / "model.safetensors")
    best.load_state_dict({name: t.float() for name, t in stored.items()})
    difference = check_in_transformers(args.out, best, val_data[None, :args.block_size])
    print("transformers: not installed" if difference is None
          else f"transformers agrees within {difference:.1e}")
    stored_val = mean_loss(best, val_data, args.block_size)
    stored_train = mean_loss(best, train_data[:len(val_data)], args.block_size)
    prompt = "ROMEO:"
    at_best = next(r for r in facts["history"] if r["step"] == facts["best_step"])
    card = CARD.format(
        **CONFIG, parameters=parameters, parameters_m=parameters / 1e6,
        n_bytes=len(text.encode()), n_train=len(train_data), n_val=len(val_data),
        lr=args.lr, weight_decay=args.weight_decay, warmup=args.warmup, dropout=args.dropout,
        batch_size=args.batch_size, block_size=args.block_size, ema=args.ema,
        steps=facts["steps"], tokens=facts["tokens"], epochs=facts["tokens"] / len(train_data),
        minutes=facts["seconds"] / 60, tokens_per_s=facts["tokens"] / facts["seconds"],
        best_step=facts["best_step"], best_epochs=facts["best_tokens"] / len(train_data),
        train_loss=at_best["train_loss"], val_loss=facts["best_val_loss"],
        stored_train=stored_train, stored_val=stored_val, perplexity=math.exp(stored_val),
        bits=stored_val / math.log(2) * len(val_data) / len(text[cut:].encode()),
        machine=cpu_name(), threads=args.threads, torch_version=torch.__version__,
        prompt=prompt, sample=sample(best, tokenizer, prompt, 240, args.seed))
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
