#!/usr/bin/env python3
"""Writes tests/golden/chat/cases.json: conversations as Jinja renders them with the templates of
the common families, the way transformers' apply_chat_template does (sandboxed, trim_blocks,
lstrip_blocks). The templates beside it have the forms that the models' publishers gave them, less
tools. Needs python3-jinja2; the tests themselves do not.

    scripts/make_chat_goldens.py
"""

import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = Path(__file__).resolve().parent.parent / "tests" / "golden" / "chat"

# name: (family, special tokens; the first two are BOS and EOS)
TEMPLATES = {
    "smollm2": ("chatml", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
    "qwen2.5": ("chatml", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
    "qwen3": ("chatml", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]),
    "chatml_bos": ("chatml", ["<s>", "<|im_end|>", "<|im_start|>"]),
    "llama2": ("llama2", ["<s>", "</s>"]),
    "llama3": ("llama3", ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
                          "<|end_header_id|>"]),
    "llama3.1": ("llama3", ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
                            "<|end_header_id|>"]),
    "mistral_v1": ("mistral", ["<s>", "</s>"]),
    "mistral_v2": ("mistral", ["<s>", "</s>"]),
    "mistral_v3": ("mistral", ["<s>", "</s>", "[INST]", "[/INST]"]),
    "gemma2": ("gemma", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]),
    "gemma3": ("gemma", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]),
    "zephyr": ("zephyr", ["<s>", "</s>"]),
}


def say(*turns):
    return [{"role": role, "content": text} for role, text in turns]


CONVERSATIONS = [
    say(("user", "Hello")),
    say(("user", "  two spaces, one newline\n")),
    say(("system", "Be brief."), ("user", "Hello")),
    say(("user", "One"), ("assistant", "Two"), ("user", "Three")),
    say(("user", " One "), ("assistant", " Two\n"), ("user", "\tThree\n\n")),
    say(("system", " Be brief. "), ("user", " One"), ("assistant", "Two "), ("user", "Three ")),
    say(("system", ""), ("user", "")),
    say(("system", "Rules\n\nof two parts"), ("user", "a\u00a0b\u00a0"), ("assistant", ""),
        ("user", "\u00a0c")),
    say(("user", "Why?"), ("assistant", "<think>\nHm.\n</think>\n\nSo."), ("user", "And?"),
        ("assistant", "No </think> left."), ("user", "Well?")),
    say(("assistant", "I begin"), ("user", "Oh")),
    say(("user", "One"), ("user", "Two")),
    say(("user", "One"), ("system", "Late"), ("user", "Two")),
    say(("system", "Alone")),
    say(("user", "One"), ("assistant", "Two")),
]


def refuse(message):
    raise TemplateError(message)


def render(template, specials, messages):
    """The prompt's text, or None where the template raises."""
    try:
        return template.render(messages=messages, add_generation_prompt=True, bos_token=specials[0],
                               eos_token=specials[1])
    except (TemplateError, IndexError):
        return None


def main():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.globals["raise_exception"] = refuse
    out = []
    for name, (family, specials) in TEMPLATES.items():
        template = env.from_string((HERE / f"{name}.jinja").read_text())
        cases = [{"messages": messages, "text": render(template, specials, messages)}
                 for messages in CONVERSATIONS]
        out.append({"name": name, "family": family, "specials": specials, "cases": cases})
    (HERE / "cases.json").write_text(json.dumps(out, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
