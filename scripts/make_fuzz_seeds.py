#!/usr/bin/env python3
"""Makes the small seeds of tests/fuzz/corpus/ for gguf, safetensors, checkpoint, config and
dataset.

Needs only Python:

    python3 scripts/make_fuzz_seeds.py tests/fuzz/corpus
"""
import json
import struct
import sys
from pathlib import Path

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
# element type: (elements a block, bytes a block, id in GGUF)
TYPES = {"f32": (1, 4, 0), "f16": (1, 2, 1), "bf16": (1, 2, 30), "q4_0": (32, 18, 2),
         "q4_1": (32, 20, 3), "q5_0": (32, 22, 6), "q5_1": (32, 24, 7), "q8_0": (32, 34, 8),
         "q4_K": (256, 144, 12), "q5_K": (256, 176, 13), "q6_K": (256, 210, 14)}


def string(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(v):
    if isinstance(v, bool):
        return struct.pack("<IB", BOOL, v)
    if isinstance(v, int):
        return struct.pack("<II", U32, v)
    if isinstance(v, float):
        return struct.pack("<If", F32, v)
    if isinstance(v, str):
        return struct.pack("<I", STRING) + string(v)
    if isinstance(v[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(v)) + b"".join(map(string, v))
    return struct.pack(f"<IIQ{len(v)}f", ARRAY, F32, len(v), *v)


def gguf(keys, tensors, version=3):
    """tensors: {name: (type, dims innermost first)}"""
    infos, data = b"", b""
    for name, (kind, dims) in tensors.items():
        block, size, number = TYPES[kind]
        n = 1
        for dim in dims:
            n *= dim
        infos += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        infos += struct.pack("<IQ", number, len(data))
        ones = struct.pack("<f", 1) * n  # rope_freqs.weight must make sense
        data += ones if kind == "f32" else bytes(i * 7 % 60 for i in range(n // block * size))
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(string(k) + value(v) for k, v in keys.items()) + infos
    return head + bytes(-len(head) % 32) + data


def llama(arch, kind="f32", width=8, **more):
    keys = {"general.architecture": arch, f"{arch}.block_count": 1,
            f"{arch}.embedding_length": width, f"{arch}.feed_forward_length": width,
            f"{arch}.attention.head_count": width // 8, f"{arch}.context_length": 4,
            f"{arch}.attention.layer_norm_rms_epsilon": 1e-5, f"{arch}.rope.freq_base": 1e4, **more}
    tensors = {"token_embd.weight": (kind, (width, 3)), "output_norm.weight": ("f32", (width,)),
               "blk.0.attn_norm.weight": ("f32", (width,)),
               "blk.0.ffn_norm.weight": ("f32", (width,))}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{name}.weight"] = (kind, (width, width))
    if arch == "qwen3":
        tensors["blk.0.attn_q_norm.weight"] = tensors["blk.0.attn_k_norm.weight"] = ("f32", (8,))
    if arch == "llama":
        tensors["rope_freqs.weight"] = ("f32", (4,))
    return gguf(keys, tensors)


def mixed():
    """Every quantized type, and queries, keys and values of three in one matrix."""
    keys = {"general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 256,
            "llama.feed_forward_length": 32, "llama.attention.head_count": 1,
            "llama.attention.key_length": 32, "llama.attention.value_length": 32,
            "llama.context_length": 4, "llama.attention.layer_norm_rms_epsilon": 1e-5}
    tensors = {"token_embd.weight": ("q6_K", (256, 3)), "output.weight": ("q8_0", (256, 3)),
               "output_norm.weight": ("q8_0", (256,)), "blk.0.attn_norm.weight": ("f32", (256,)),
               "blk.0.ffn_norm.weight": ("f32", (256,))}
    for name, kind, shape in [("attn_q", "q4_K", (256, 32)), ("attn_k", "q5_K", (256, 32)),
                              ("attn_v", "q6_K", (256, 32)), ("attn_output", "q5_0", (32, 256)),
                              ("ffn_gate", "q4_1", (256, 32)), ("ffn_up", "q4_0", (256, 32)),
                              ("ffn_down", "q5_1", (32, 256))]:
        tensors[f"blk.0.{name}.weight"] = (kind, shape)
    return gguf(keys, tensors)


def gpt2():
    keys = {"general.architecture": "gpt2", "gpt2.block_count": 1, "gpt2.embedding_length": 8,
            "gpt2.feed_forward_length": 8, "gpt2.attention.head_count": 1,
            "gpt2.context_length": 4, "gpt2.attention.layer_norm_epsilon": 1e-5}
    tensors = {"token_embd.weight": ("f16", (8, 3)), "position_embd.weight": ("f32", (8, 4))}
    for name, dims in {"output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,),
                       "blk.0.attn_qkv": (8, 24), "blk.0.attn_output": (8, 8),
                       "blk.0.ffn_up": (8, 8), "blk.0.ffn_down": (8, 8)}.items():
        tensors[f"{name}.weight"] = ("f32" if len(dims) == 1 else "bf16", dims)
        tensors[f"{name}.bias"] = ("f32", (dims[-1],))
    return gguf(keys, tensors)


def safetensors(tensors, **metadata):
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
    header, at = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (kind, shape) in tensors.items():
        n = sizes[kind]
        for dim in shape:
            n *= dim
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes(i % 61 for i in range(at))


def config(kind, **more):
    sizes = {"vocab_size": 32, "max_position_embeddings": 64, "hidden_size": 32,
             "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    if kind == "gpt2":
        sizes = {"vocab_size": 32, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
                 "activation_function": "gelu_new", "n_inner": None}
    return json.dumps({"model_type": kind, **sizes, **more}, separators=(",", ":")).encode()


def directory(config_json, tensors):
    """A config and its weights, as fuzz_checkpoint takes them."""
    return struct.pack("<I", len(config_json)) + config_json + safetensors(tensors)


def gpt2_directory():
    sizes = {"model_type": "gpt2", "vocab_size": 3, "n_positions": 4, "n_embd": 8, "n_layer": 1,
             "n_head": 1, "n_inner": 8}
    tensors = {"wte.weight": ("BF16", [3, 8]), "wpe.weight": ("F32", [4, 8]),
               "h.0.attn.bias": ("U8", [1, 1, 4, 4])}
    for name, shape in {"ln_f": [8], "h.0.ln_1": [8], "h.0.ln_2": [8], "h.0.attn.c_attn": [8, 24],
                        "h.0.attn.c_proj": [8, 8], "h.0.mlp.c_fc": [8, 8],
                        "h.0.mlp.c_proj": [8, 8]}.items():
        tensors[f"{name}.weight"] = ("F16", shape)
        tensors[f"{name}.bias"] = ("F32", shape[-1:])
    return directory(json.dumps(sizes, separators=(",", ":")).encode(), tensors)


def qwen3_directory():
    sizes = {"model_type": "qwen3", "vocab_size": 3, "max_position_embeddings": 4, "hidden_size": 8,
             "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 8}
    tensors = {"model.embed_tokens.weight": ("BF16", [3, 8]), "model.norm.weight": ("F32", [8]),
               "lm_head.weight": ("F32", [3, 8])}
    for name, shape in {"input_layernorm": [8], "post_attention_layernorm": [8],
                        "self_attn.q_proj": [16, 8], "self_attn.k_proj": [8, 8],
                        "self_attn.v_proj": [8, 8], "self_attn.o_proj": [8, 16],
                        "self_attn.q_norm": [8], "self_attn.k_norm": [8],
                        "mlp.gate_proj": [8, 8], "mlp.up_proj": [8, 8],
                        "mlp.down_proj": [8, 8]}.items():
        tensors[f"model.layers.0.{name}.weight"] = ("BF16", shape)
    return directory(json.dumps(sizes, separators=(",", ":")).encode(), tensors)


def manifest():
    """Of shards whose one file is any other that lies beside it."""
    shard = {"file": "a.txt", "tokens": 4, "documents": 1, "mask": True, "sha256": "0" * 64}
    return json.dumps({"format": "gptd token shards 1", "tokenizer": "0" * 64, "vocab_size": 28,
                       "id_bytes": 2, "files": 1, "text_bytes": 9,
                       "splits": {"train": [shard], "validation": []}}).encode()


def main():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    preset = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "block_size": 64,
              "vocab_size": 32, "dropout": 0.1, "bias": True, "pos_encoding": "rope",
              "norm_type": "rmsnorm", "mlp_type": "swiglu", "tie_weights": False,
              "rope_scaling": "linear", "rope_factor": 2, "batch_size": 4, "learning_rate": 1e-3,
              "lr_schedule": "cosine", "seed": 1}
    seeds = {
        "gguf/llama": llama("llama"),
        "gguf/llama_q4_1": llama("llama", "q4_1", 32),
        "gguf/qwen2_linear": llama("qwen2", "f16", **{"qwen2.rope.scaling.type": "linear",
                                                      "qwen2.rope.scaling.factor": 2.0}),
        "gguf/qwen3": llama("qwen3", "bf16"),
        "gguf/gpt2": gpt2(),
        "gguf/mixed": mixed(),
        "gguf/types": gguf({"general.alignment": 32, "flag": True, "words": ["a", "", "bc"],
                            "scores": [0.5, -1.0]}, {k: (k, (t[0],)) for k, t in TYPES.items()}, 2),
        "safetensors/mixed": safetensors({"w": ("F32", [2, 3]), "b": ("BF16", [2]),
                                          "s": ("F16", []), "mask": ("U8", [1, 1, 2, 2]),
                                          "ids": ("I64", [0])}, format="pt"),
        "safetensors/empty": safetensors({}),
        "checkpoint/gpt2": gpt2_directory(),
        "checkpoint/qwen3": qwen3_directory(),
        "config/gpt2": config("gpt2"),
        "config/llama3": config("llama", rope_scaling=llama3, attention_bias=True),
        "config/llama_parameters": config("llama", rope_parameters={**llama3, "rope_theta": 5e5}),
        "config/mistral": config("mistral", sliding_window=16),
        "config/qwen2": config("qwen2", use_sliding_window=True, sliding_window=16,
                               layer_types=["full_attention", "sliding_attention"]),
        "config/qwen3": config("qwen3", rope_scaling={"type": "linear", "factor": 2}),
        "dataset/text": b"\xef\xbb\xbfabc\n<|endoftext|>\r\nde<|endoftext|><|endoftext|>f",
        "dataset/lines": b'{"text":"ab","id":1}\r\n\n{"prompt":"a","completion":"b"}\n'
                         b'{"messages":[{"role":"user","content":"c"},'
                         b'{"role":"assistant","content":"d"}]}',
        "dataset/utf16": "abcdef".encode("utf-16"),
        "dataset/manifest": manifest(),
        "config/preset": json.dumps(preset, separators=(",", ":")).encode(),
    }
    for name, data in seeds.items():
        path = Path(sys.argv[1]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
