#!/usr/bin/env python3
"""Train small tokenizers of each kind that models use, and record what they make of hard texts.

    python3 scripts/make_tokenizer_goldens.py --text FILE [FILE ...] [--out tests/golden/tokenizers]

Each kind becomes a directory with tokenizer.json and cases.json in the format that
tests/golden/README.md describes. The pre-tokenizers, normalizers and decoders are set up as in the
tokenizer.json of the models that the kinds are named after; the vocabularies are trained on FILE,
any UTF-8 text with more than one language in it (the committed ones: Shakespeare and Dante, both in
the public domain), and on the hard texts themselves.

Needs the PyPI package tokenizers (0.20).
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import tokenizers
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

# Added to every kind, after the vocabulary.
ADDED_TOKENS = [
    AddedToken("<|endoftext|>", special=True, normalized=False),
    AddedToken("<|im_start|>", special=True, normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<mask>", special=True, normalized=False, lstrip=True),
    AddedToken("<sep>", special=True, normalized=False, rstrip=True),
    AddedToken("<tool>", special=False, normalized=False),
]
NORMALIZED_TOKEN = AddedToken("<norm>", special=False, normalized=True)

# Whole words that no merge reaches: with ignore_merges they are found, without they are not.
UNREACHABLE_WORDS = ["Ġxylophone", "Zanzibar", "qqqqq"]

TEXTS = [
    "",
    " ",
    "  ",
    "a",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces, three   spaces,    four",
    "\n",
    "\n\n\n",
    " \n \n",
    "line\nline\n\nparagraph\n\n\n  indented\n",
    "windows\r\nlines\r\n\r\nend\r",
    "\ttab\t\ttabs \t mixed \n\t newline",
    "   \t  \n   \r\n \x0b\x0c  ",
    "spaces at the end of a line   \nnext",
    " " * 70,
    "\n" * 40 + "x" + " " * 17 + "y",
    "I'm you're he's they'll we've I'd can't",
    "I'M YOU'RE HE'S THEY'LL WE'VE I'D CAN'T",
    "'s'S'tt'llama 'LLAMA ''s '' '",
    "it’s a typographer’s apostrophe",
    "the ſ in 'ſ is an s when case is ignored",
    "0 1 12 123 1234 12345 123456 1234567",
    "3.14159, 1,000,000; 0x1F, 1e-9, 2024-02-29, 10:30",
    "٣٤٥ ४५६ Ⅷ ² ½ ①②③ 一二三",
    "x1y22z333 a1b2c3 4ever",
    "xylophone Zanzibar qqqqq a xylophone",
    "Zanzibar",
    "qqqqq",
    "don't-stop_me.now @user #tag $100 50% a&b a*b (c) [d] {e} <f>",
    "!!!??? ... --- *** ;;; ))))) :-) <3 =>",
    "!\n!!\r\n?\n\n.",
    "ARMADO: I do affect the very ground, which is base.",
    "Nel mezzo del cammin di nostra vita\nmi ritrovai per una selva oscura,",
    "perché così è: più virtù, però lì già c'è l'aria dell'Inferno",
    "Übergrößenträger, naïveté, São Paulo, Dvořák, Łódź, İstanbul, ǅ",
    "e\u0301 is \u00e9, n\u0303 is \u00f1, A\u030a is \u00c5 is \u212b",
    "Z\u0335\u0321\u0322a\u0300\u0301\u0302\u0303l\u0334g\u0358o",
    "\u1100\u1161\u11a8 \uac01 \ufb01 \u2460",
    "日本語のテキスト、漢字とかな。",
    "我能吞下玻璃而不伤身体。",
    "한국어 문장입니다.",
    "Съешь ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "אבגד שלום עולם",
    "مرحبا بالعالم، كيف الحال؟",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀 😀😀 🎉!",
    "👩‍👩‍👧‍👦 👍🏽 🇮🇹🇯🇵 ☺️ 1️⃣",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎 \U0010ffff",
    "nul \x00 and \x01\x02\x1b[0m\x7f controls",
    "\x00",
    "nbsp\u00a0here \u2003em space \u3000wide \u200bzero \u2028line\u2029para \u0085nel",
    "\ufeffbyte order mark, soft\u00adhyphen, \u202eright to left\u202c",
    "replacement \ufffd\ufffd and \ufffe \uffff nonce",
    "already ▁ marked ▁▁ and Ġ Ċ Ã© <0x0A> bytes",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "a" * 300,
    "ab" * 150 + "ba" * 50,
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@example.com",
    "#include <stdio.h>\nint main(void)\n{\n\tprintf(\"%d\\n\", 42);\n    return 0;\n}\n",
    "def f(x):\n    if x >= 10:\n        return {'a': [1, 2, 3]}\n    return None  # done\n",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"empty\": \"\"}}",
    "<|endoftext|>",
    "before<|endoftext|>after",
    "before <|endoftext|> after<|endoftext|><|endoftext|>",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|<|im_end|>|> <|endoftext <|ENDOFTEXT|>",
    "left  <mask>  right <mask><mask> <mask>",
    "left  <sep>  right <sep>\n\n<sep> end",
    "both  <sep>  <mask>  both",
    "a <tool> b<tool>c  <tool>",
    "a <norm> b<norm>c  <norm>",
    "<s> </s> <unk> [INST] <<SYS>> <s><s>x</s>",
    "<|begin_of_text|>start",
    "\n<|endoftext|>\n <|im_end|> \n",
]


def train_byte_level(texts, vocab_size, pre_tokenizer, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tokenizer


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False), byte_level(False)])


def digits_then_bytes():
    return pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), byte_level(True)])


def edited(tokenizer, edit):
    """The tokenizer after `edit` changed its JSON in place."""
    value = json.loads(tokenizer.to_str())
    edit(value)
    return Tokenizer.from_str(json.dumps(value))


def template(token, token_id):
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, token_id)])


def make_gpt2(texts):
    tokenizer = train_byte_level(texts, 700, byte_level(True))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens(ADDED_TOKENS + [NORMALIZED_TOKEN])
    return tokenizer


def make_llama3(texts):
    def edit(value):
        value["model"]["ignore_merges"] = True
        for word in UNREACHABLE_WORDS:
            value["model"]["vocab"][word] = len(value["model"]["vocab"])

    tokenizer = edited(train_byte_level(texts, 800, split_then_bytes(LLAMA3_PATTERN)), edit)
    begin = "<|begin_of_text|>"
    tokenizer.add_tokens([AddedToken(begin, special=True, normalized=False)]
                         + ADDED_TOKENS + [NORMALIZED_TOKEN])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False), template(begin, tokenizer.token_to_id(begin))])
    return tokenizer


def make_qwen2(texts):
    tokenizer = train_byte_level(texts, 600, split_then_bytes(QWEN2_PATTERN), normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens(ADDED_TOKENS + [NORMALIZED_TOKEN])
    return tokenizer


def make_smollm(texts):
    tokenizer = train_byte_level(texts, 500, digits_then_bytes())
    tokenizer.add_tokens(ADDED_TOKENS + [NORMALIZED_TOKEN])
    return tokenizer


def make_starcoder(texts):
    tokenizer = train_byte_level(list(reversed(texts)) + 200 * [t for t in TEXTS if "return" in t],
                                 450, digits_then_bytes())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens(ADDED_TOKENS + [NORMALIZED_TOKEN])
    return tokenizer


def make_llama2(texts):
    """Trained on words, as SentencePiece does, though the finished one has no pre-tokenizer."""
    special = ["<unk>", "<s>", "</s>"]
    counts = Counter(c for c in "▁".join(texts).replace(" ", "▁") if c.isprintable())
    # Chosen here, because the trainer breaks ties at random. The rest, newlines among it, falls
    # back to bytes.
    alphabet = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:100])
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    tokenizer.train_from_iterator(
        [line for text in texts for line in text.split("\n")],
        trainers.BpeTrainer(
            vocab_size=800, show_progress=False,
            limit_alphabet=len(alphabet), initial_alphabet=alphabet,
            special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)]))

    def edit(value):
        # The trainer can keep byte tokens only as special ones; in the format they are plain.
        value["added_tokens"] = [t for t in value["added_tokens"] if t["content"] in special]
        value["pre_tokenizer"] = None
        vocab, merges = value["model"]["vocab"], value["model"]["merges"]
        for half in ("▁", "▁▁", "▁▁▁▁"):  # runs of spaces
            vocab[half + half] = len(vocab)
            merges.append([half, half])

    tokenizer = edited(tokenizer, edit)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(content=" ", left=1, right=0)])
    tokenizer.add_tokens(ADDED_TOKENS)
    tokenizer.post_processor = template("<s>", tokenizer.token_to_id("<s>"))
    return tokenizer


KINDS = {  # name -> (maker, merges as single strings, the form before tokenizers 0.20)
    "gpt2": (make_gpt2, True),
    "llama3": (make_llama3, False),
    "qwen2": (make_qwen2, False),
    "smollm": (make_smollm, False),
    "starcoder": (make_starcoder, True),
    "llama2": (make_llama2, True),
}


def encode_case(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids_added = tokenizer.encode(text, add_special_tokens=True).ids
    tokenizer.encode_special_tokens = True
    ids_plain = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    decode = lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip).encode().hex()
    return {"text": None if "\0" in text else text, "text_hex": text.encode().hex(),
            "ids": ids, "ids_added": ids_added, "ids_plain": ids_plain,
            "decoded_hex": decode(ids, False), "decoded_skip_hex": decode(ids, True),
            "decoded_plain_hex": decode(ids_plain, False)}


def decode_cases(tokenizer, cases):
    """Beginnings and ends of texts, which cut characters in two; and ids drawn at random."""
    sequences = [[]]
    for case in cases:
        ids = case["ids"]
        if len(ids) < 40 and bytes.fromhex(case["text_hex"]).decode().isascii() is False:
            sequences += [ids[:len(ids) // 2], ids[:-1], ids[1:]]
    generator = random.Random(1)
    for _ in range(40):
        sequences.append([generator.randrange(tokenizer.get_vocab_size()) for _ in range(12)])
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False).encode().hex()
    return [{"ids": ids, "decoded_hex": decode(ids)} for ids in sequences]


def write_json_rows(path, head, lists):
    """JSON with one row of each list a line: short enough to store, long enough to read a diff."""
    row = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    parts = [f'"{key}":{row(value)}' for key, value in head.items()]
    parts += [f'"{key}":[\n' + ",\n".join(map(row, rows)) + "\n]" for key, rows in lists.items()]
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="UTF-8 to train on")
    parser.add_argument("--out", type=Path, default=Path("tests/golden/tokenizers"))
    args = parser.parse_args()
    # A little of each file, then the hard texts often enough to earn tokens of their own: a wrong
    # split shows only where a token exists that crosses it. Not all: runs of one character would
    # fill up so small a vocabulary, and UNREACHABLE_WORDS are to stay so.
    texts = [path.read_text(encoding="utf-8")[:60_000] for path in args.text]
    texts += 30 * [t for t in TEXTS if len(t) < 100 and len(set(t)) > len(t) // 4
                   and not any(word.strip("Ġ") in t for word in UNREACHABLE_WORDS)]
    texts.append(" ".join(str(n * n) for n in range(3000)))
    for name, (make, merges_as_strings) in KINDS.items():
        value = json.loads(make(texts).to_str())
        if merges_as_strings:
            value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]
        directory = args.out / name
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(value, ensure_ascii=False, indent=1)
        (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        cases = [encode_case(tokenizer, text) for text in TEXTS]
        decode = decode_cases(tokenizer, cases)
        write_json_rows(directory / "cases.json",
                        {"name": name, "tokenizers": tokenizers.__version__},
                        {"encode": cases, "decode": decode})
        size = sum(f.stat().st_size for f in directory.iterdir())
        print(f"{name}: {tokenizer.get_vocab_size()} tokens, {len(cases)} texts, "
              f"{len(decode)} id sequences, {size:,} bytes")


if __name__ == "__main__":
    main()
