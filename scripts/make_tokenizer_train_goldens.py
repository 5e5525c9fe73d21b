#!/usr/bin/env python3
"""Record what Hugging Face's BPE trainer makes of a text, for `gptd tokenizer train` to match.

    python3 scripts/make_tokenizer_train_goldens.py [--out tests/golden/tokenizer_train]

text.txt is drawn with a fixed seed: words of a made-up language by Zipf's law, so that counts tie
often and the order of merges hangs on the rule for ties, with digits, punctuation, white space and
several scripts in between. NAME.json is the tokenizer.json that the trainer makes of it, for each
pre-tokenizer.

Needs the PyPI package tokenizers (0.20).
"""

import argparse
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from make_tokenizer_goldens import LLAMA3_PATTERN

VOCAB_SIZE = {"gpt2": 900, "llama3": 1200}
MIN_COUNT = {"gpt2": 2, "llama3": 1}
END_OF_TEXT = "<|endoftext|>"


def draw_text(seed=7, n_words=9000):
    rng = random.Random(seed)
    consonants = ["b", "d", "f", "gr", "k", "l", "m", "n", "p", "r", "s", "sh", "t", "tr", "v", "z"]
    vowels = ["a", "e", "i", "o", "u", "ai", "ou", "è", "ü"]
    syllables = [c + v for c in consonants for v in vowels]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4))) for _ in range(1500)]
    words += ["日本", "日本語", "слово", "слова", "नमस्ते", "🙂", "🙂🙂", "12", "2024", "1000000"]
    weights = [1 / (i + 3) for i in range(len(words))]
    rng.shuffle(words)
    text = []
    for word in rng.choices(words, weights, k=n_words):
        if rng.random() < 0.12:
            word = word.capitalize()
        text.append(word + rng.choices(["", ",", ".", "!", "?", "'s", "...", " - "],
                                       [80, 8, 8, 1, 1, 2, 1, 1])[0])
        text.append(rng.choices([" ", "\n", "  ", "\n\n", "\t", " \n   "],
                                [90, 6, 1, 2, 1, 1])[0])
    return "".join(text)


def pre_tokenizer(name):
    if name == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden/tokenizer_train"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    text = draw_text()
    (out / "text.txt").write_text(text, encoding="utf-8", newline="")
    for name, vocab_size in VOCAB_SIZE.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizer(name)
        tokenizer.decoder = decoders.ByteLevel()
        # The text as one piece: train() would cut it into lines.
        tokenizer.train_from_iterator([text], trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=MIN_COUNT[name], show_progress=False,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        tokenizer.save(str(out / f"{name}.json"), pretty=False)


if __name__ == "__main__":
    main()
