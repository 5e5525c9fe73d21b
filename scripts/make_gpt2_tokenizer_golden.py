#!/usr/bin/env python3
"""Record what GPT-2's own tokenizer makes of some texts.

    python3 scripts/make_gpt2_tokenizer_golden.py --vocab encoder.json --merges vocab.bpe \\
        --text NAME=FILE[:BYTES] [...] [--whole-ids NAME=FILE] --out DATA/gpt2_tokenizer

OUT gets vocab.json and merges.txt (GPT-2's files under the names that Hugging Face uses), and for
each text NAME.txt, the first BYTES of FILE cut at a line's end, and NAME.u16, its ids as
little-endian uint16. The ids must come out the same from two independent libraries, `tokenizers`
and `tiktoken`, both built from the given files, and decode to the text. --whole-ids compares them
besides with the ids of the whole FILE that NAME is the beginning of, stored as uint16.

Needs the PyPI packages tokenizers, tiktoken and numpy.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import tiktoken
from tokenizers import ByteLevelBPETokenizer
from tokenizers.pre_tokenizers import ByteLevel

# GPT-2's pre-tokenizer.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def byte_of_letter():
    """The byte that each letter of a byte-level vocabulary stands for: `tokenizers` says."""
    table = {}
    for byte in range(256):
        # Printable Latin-1 stands for itself; the others follow from 256 on, in order.
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            table[chr(byte)] = byte
        else:
            table[chr(256 + len(table) - sum(ord(c) < 256 for c in table))] = byte
    assert set(table) == set(ByteLevel.alphabet())
    return table


def tiktoken_encoding(vocab):
    """In tiktoken a token's id is its rank, and ranks decide the merges: GPT-2 numbered them so."""
    letters = byte_of_letter()
    ranks = {bytes(letters[c] for c in token): i for token, i in vocab.items()
             if token != "<|endoftext|>"}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": vocab["<|endoftext|>"]})


def excerpt(path, n_bytes):
    data = path.read_bytes()
    if n_bytes and n_bytes < len(data):
        data = data[:data.rindex(b"\n", 0, n_bytes) + 1]
    return data


def parse_text(argument):
    name, _, rest = argument.partition("=")
    path, _, n_bytes = rest.partition(":")
    return name, Path(path), int(n_bytes or 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--merges", type=Path, required=True)
    parser.add_argument("--text", type=parse_text, nargs="+", required=True)
    parser.add_argument("--whole-ids", default="", help="NAME=FILE of uint16")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.vocab, args.out / "vocab.json")
    shutil.copyfile(args.merges, args.out / "merges.txt")
    first = ByteLevelBPETokenizer(str(args.out / "vocab.json"), str(args.out / "merges.txt"))
    second = tiktoken_encoding(json.loads(args.vocab.read_text(encoding="utf-8")))
    whole_name, _, whole_path = args.whole_ids.partition("=")
    for name, path, n_bytes in args.text:
        data = excerpt(path, n_bytes)
        text = data.decode("utf-8")
        ids = first.encode(text).ids
        assert ids == second.encode_ordinary(text), name
        assert second.decode_bytes(ids) == data, name
        if name == whole_name:
            # The last line's end may join what follows it in the whole text.
            whole = np.fromfile(whole_path, "<u2")[:len(ids) - 1]
            assert whole.tolist() == ids[:-1], name
        (args.out / f"{name}.txt").write_bytes(data)
        np.array(ids, "<u2").tofile(args.out / f"{name}.u16")
        print(f"{name}: {len(data):,} bytes, {len(ids):,} ids")
    for file in args.out.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
