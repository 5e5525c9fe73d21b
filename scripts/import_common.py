"""What the importers share: reading a torch checkpoint, and writing a model directory that gptd
(and, where the family is Hugging Face's, transformers) loads. Needs torch and numpy alone."""

import argparse
import collections
import inspect
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def fail(text):
    sys.exit(f"{Path(sys.argv[0]).name}: {text}")


# ---- The command line ----


def parser(doc, checkpoint):
    """Of the options that every importer has; `checkpoint` says what the first argument is."""
    p = argparse.ArgumentParser(description=doc.split("\n")[0])
    p.add_argument("checkpoint", nargs="?", type=Path, help=checkpoint)
    p.add_argument("--out", type=Path, help="the directory to write")
    p.add_argument("--gpt2-tokenizer", type=Path, help="folder with vocab.json and merges.txt")
    p.add_argument("--dtype", choices=DTYPES, help="of the matrices; without: as stored")
    p.add_argument("--trust", action="store_true", help="unpickle anything: the file can run code")
    p.add_argument("--self-test", action="store_true")
    p.add_argument("--gptd", default="build/gptd", help="for the self-test")
    return p


def main(p, run, self_test):
    args = p.parse_args()
    if args.self_test:
        self_test(args)
    elif args.checkpoint and args.out:
        run(args)
    else:
        p.error("say which checkpoint, and --out DIR")


# ---- Reading ----


class PlainUnpickler(pickle.Unpickler):
    """Dictionaries, lists, strings and numbers. A pickle can name any function of Python and have
    it called: none is looked up here."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


class TensorUnpickler(PlainUnpickler):
    """What torch.save writes since version 1.6, for tensors and plain values: a zip file with
    data.pkl and the bytes of each storage. (torch.load can be told to take no code, but not in the
    same way in every version, and some then refuse plain floats.)"""

    STORAGES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64,
                "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
                "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
                "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}

    def __init__(self, archive, name):
        super().__init__(archive.open(name))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")

    def find_class(self, module, name):
        if module == "torch" and name in self.STORAGES:
            return self.STORAGES[name]
        known = {"collections.OrderedDict": collections.OrderedDict, "torch.Size": tuple,
                 "torch._utils._rebuild_tensor_v2": self.rebuild,
                 "torch._utils._rebuild_parameter": lambda data, grad, hooks: data}
        return known.get(f"{module}.{name}") or super().find_class(module, name)

    def persistent_load(self, pid):
        _, dtype, key, _, n = pid
        data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        return torch.frombuffer(data, dtype=dtype, count=n) if n else torch.empty(0, dtype=dtype)

    @staticmethod
    def rebuild(storage, offset, size, stride, *rest):
        return storage.as_strided(size, stride, offset)


def load_checkpoint(path, trust):
    """The object in a .pt file: tensors and plain values, or anything when the user trusts it."""
    try:
        if trust:
            return torch.load(path, map_location="cpu", **(
                {"weights_only": False} if "weights_only" in
                inspect.signature(torch.load).parameters else {}))
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if not name:
                raise pickle.UnpicklingError("it has no data.pkl")
            return TensorUnpickler(archive, name).load()
    except FileNotFoundError:
        fail(f"{path}: no such file")
    except zipfile.BadZipFile:
        fail(f"{path}: not what torch.save writes since version 1.6 (if you made this file "
             "yourself: --trust)")
    except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError) as error:
        fail(f"{path}: cannot be read: {str(error).splitlines()[0]} (if you made this file "
             "yourself: --trust)")


def load_plain_pickle(path):
    with open(path, "rb") as file:
        try:
            return PlainUnpickler(file).load()
        except pickle.UnpicklingError as error:
            fail(f"{path}: {error}; a dictionary of strings and numbers was expected")


class Weights:
    """A state dictionary whose tensors are taken out one by one: one that nobody took would mean a
    model that computes something else."""

    def __init__(self, state, where, needless=()):
        # torch.compile puts this before every name.
        self.left = {name.removeprefix("_orig_mod."): t for name, t in state.items()}
        self.left = {n: t for n, t in self.left.items() if not n.endswith(tuple(needless))}
        self.where = where

    def has(self, name):
        return name in self.left

    def take(self, name, *shape):
        if name not in self.left:
            fail(f"{self.where}: the weights lack {name}")
        tensor = self.left.pop(name)
        if tuple(tensor.shape) != shape:
            fail(f"{self.where}: {name} has shape {list(tensor.shape)}, not {list(shape)}")
        return tensor.detach()

    def take_or_zeros(self, name, n):
        return self.take(name, n) if self.has(name) else torch.zeros(n)

    def finish(self):
        if self.left:
            fail(f"{self.where}: {sorted(self.left)[0]} has no place in the model that was assumed")


# ---- Writing ----


def write_atomic(path, *chunks):
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path, value):
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def raw_bytes(tensor):
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.view(torch.int16)
    return tensor.numpy().tobytes()


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        size = t.numel() * t.element_size()
        header[name] = {"dtype": TYPES[t.dtype], "shape": list(t.shape),
                        "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomic(path, struct.pack("<Q", len(text)), text, *map(raw_bytes, tensors.values()))


def write_model(out, config, tensors, dtype):
    """Matrices as dtype (None: as they are), vectors as f32."""
    dtype = dtype or next(iter(tensors.values())).dtype
    if dtype not in TYPES:
        dtype = torch.float32
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", {
        name: t.to(dtype if t.dim() == 2 else torch.float32) for name, t in tensors.items()})
    write_json(out / "config.json", {**config, "torch_dtype": NAMES[dtype]})


# ---- Tokenizers ----


def tokenizer_json(model, added, pre_tokenizer, decoder):
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": text, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True}
                         for text, i in sorted(added.items(), key=lambda item: item[1])],
        "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": decoder,
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **model},
    }


def write_char_tokenizer(out, ids):
    """ids: character -> id."""
    write_json(out / "tokenizer.json",
               tokenizer_json({"vocab": ids, "merges": []}, {}, None, {"type": "Fuse"}))


def write_gpt2_tokenizer(out, source, added):
    """GPT-2's vocab.json and merges.txt, with special tokens added (text -> id)."""
    for name in ("vocab.json", "merges.txt"):
        if not (source / name).is_file():
            fail(f"{source} has no {name}: --gpt2-tokenizer wants the folder of GPT-2's tokenizer")
    vocab = json.loads((source / "vocab.json").read_text("utf-8"))
    lines = (source / "merges.txt").read_text("utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    added = {"<|endoftext|>": vocab["<|endoftext|>"], **added}
    write_json(out / "tokenizer.json",
               tokenizer_json({"vocab": vocab, "merges": merges}, added, byte_level, byte_level))
    return added


def write_markers(out, eos):
    """The id that ends a text, where config.json and generation_config.json have it."""
    config = json.loads((out / "config.json").read_text())
    config["bos_token_id"] = config["eos_token_id"] = eos
    write_json(out / "config.json", config)
    if eos is not None:
        write_json(out / "generation_config.json", {"bos_token_id": eos, "eos_token_id": eos})


# ---- Self-tests ----


def greedy(logits_of, ids, n, block_size):
    for _ in range(n):
        with torch.no_grad():
            logits = logits_of(torch.tensor([ids[-block_size:]]))
        ids.append(int(logits[0, -1].argmax()))
    return ids


def check_with_gptd(gptd, model, logits_of, chars, block_size, name):
    """gptd continues a text as the torch model does; the model is small and its weights are large,
    so that no two logits are close."""
    prompt, n = chars[3] + chars[1] + chars[4], block_size - 4
    ids = greedy(logits_of, [chars.index(c) for c in prompt], n, block_size)
    expected = "".join(chars[i] for i in ids[len(prompt):])
    got = subprocess.run([gptd, "generate", "--model", str(model), "--prompt", prompt,
                          "--max-new-tokens", str(n), "--temperature", "0", "--dtype", "f32"],
                         capture_output=True, text=True)
    if got.returncode != 0:
        fail(f"self-test: {name}: {got.stderr.strip().splitlines()[-1]}")
    text = got.stdout.removeprefix(prompt).rstrip("\n")
    if text != expected:
        fail(f"self-test: {name}: gptd says {text!r}, torch {expected!r}")
    print(f"self-test: {name}: gptd and torch agree on {n} tokens")


class Runs:
    """Unpickling one of these would call print."""

    def __reduce__(self):
        return print, ("a pickle ran code",)


def check_refuses_code():
    """A file whose pickle names a function is not read, in torch's format of today or of old."""
    with temporary_directory() as folder:
        for zipped in (True, False):
            path = Path(folder) / "evil.pt"
            torch.save({"model": Runs()}, path, _use_new_zipfile_serialization=zipped)
            try:
                load_checkpoint(path, trust=False)
            except SystemExit as error:
                if (".print" if zipped else "since version 1.6") in str(error):
                    continue
            sys.exit("self-test: a pickle that runs code was read")
    print("self-test: a pickle that runs code is refused")


def randomize(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)


def temporary_directory():
    return tempfile.TemporaryDirectory(prefix="gptd-import-")
