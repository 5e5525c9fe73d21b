"""`gptd data` and `gptd tokenizer train`: files in, files out, and what other programs make of
them, where they are installed."""

import hashlib
import json
import os
import struct
import subprocess

import pytest

from gptd import MODEL, command, run

STORY = ("Once upon a time there was a fox. The fox was red, and the fox was quick.\n"
         "It's 1234 o'clock; déjà vu, 日本語!\n\n    indented\ttext \n")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>\n".join(f"{STORY}{i}" for i in range(50)), encoding="utf-8")
    return path


def ok(*arguments):
    reply = run(*arguments)
    assert reply.returncode == 0, reply.stderr
    return reply.stdout


def refused(code, *arguments):
    """The one line on stderr."""
    reply = run(*arguments)
    assert reply.returncode == code, (reply.returncode, reply.stderr)
    assert reply.stderr.count("\n") == 1
    return reply.stderr


# ---- tokenizer train ----

@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "smollm", "gpt4o"])
def test_byte_bpe_loads_elsewhere(tmp_path, text, pattern):
    tokenizers = pytest.importorskip("tokenizers")
    out = tmp_path / "tokenizer"
    ok("tokenizer", "train", "--input", text, "--vocab-size", 400, "--output", out,
       "--pattern", pattern)
    theirs = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    for sample in [STORY, "x" * 100, "  a  ", "'S 's \r\n\r\n 12345", "🙂é<|endoftext|>b"]:
        ids = theirs.encode(sample).ids
        assert theirs.decode(ids, skip_special_tokens=False) == sample
    # gptd's ids, through the shards that it writes.
    (tmp_path / "sample.jsonl").write_text(json.dumps({"text": STORY}) + "\n")
    ok("data", "--input", tmp_path / "sample.jsonl", "--tokenizer", out, "--output",
       tmp_path / "shards", "--val-fraction", 0)
    assert tokens(tmp_path / "shards", "train") == [*theirs.encode(STORY).ids, 0]


def test_transformers_loads_both_kinds(tmp_path, text):
    transformers = pytest.importorskip("transformers")
    ok("tokenizer", "train", "--input", text, "--vocab-size", 300, "--output", tmp_path / "bpe")
    ok("tokenizer", "train", "--input", text, "--kind", "char", "--output", tmp_path / "char")
    bpe = transformers.AutoTokenizer.from_pretrained(tmp_path / "bpe")
    char = transformers.AutoTokenizer.from_pretrained(tmp_path / "char")
    assert bpe.eos_token == "<|endoftext|>" and bpe.eos_token_id == 0 and len(bpe) == 300
    alphabet = sorted(set(text.read_text(encoding="utf-8")))
    assert char.eos_token is None and len(char) == len(alphabet)
    assert char(STORY).input_ids == [alphabet.index(c) for c in STORY]
    for tokenizer in bpe, char:
        assert tokenizer.decode(tokenizer(STORY).input_ids) == STORY


def test_special_tokens_are_the_users(tmp_path, text):
    out = ok("tokenizer", "train", "--input", text, "--vocab-size", 258, "--output",
             tmp_path / "a", "--special", "<eot>", "--special", "<pad>")
    assert "258 tokens: 2 special" in out
    made = json.loads((tmp_path / "a/tokenizer.json").read_text(encoding="utf-8"))
    assert [t["content"] for t in made["added_tokens"]] == ["<eot>", "<pad>"]
    config = json.loads((tmp_path / "a/tokenizer_config.json").read_text())
    assert config["bos_token"] == config["eos_token"] == "<eot>"
    ok("tokenizer", "train", "--input", text, "--vocab-size", 256, "--output", tmp_path / "b",
       "--no-special")
    assert json.loads((tmp_path / "b/tokenizer.json").read_text())["added_tokens"] == []


def test_tokenizer_usage(tmp_path, text):
    assert "usage: gptd tokenizer train" in ok("tokenizer", "--help")
    assert "gptd tokenizer train" in refused(2, "tokenizer")
    assert "--vocab-size" in refused(2, "tokenizer", "train", "--input", text, "--output",
                                     tmp_path / "x")
    assert "--input" in refused(2, "tokenizer", "train", "--output", tmp_path / "x")
    assert "gpt2 smollm" in refused(1, "tokenizer", "train", "--input", text, "--output",
                                    tmp_path / "x", "--vocab-size", 300, "--pattern", "nope")
    assert not (tmp_path / "x").exists()
    ok("tokenizer", "train", "--input", text, "--kind", "char", "--output", tmp_path / "x")
    assert "is there already" in refused(1, "tokenizer", "train", "--input", text, "--kind",
                                         "char", "--output", tmp_path / "x")


# ---- data ----

def manifest(directory):
    return json.loads((directory / "manifest.json").read_text())


def tokens(directory, split):
    """All ids of a split, read by the format's own description."""
    m, ids = manifest(directory), []
    code, size = ("H", 2) if m["id_bytes"] == 2 else ("I", 4)
    for shard in m["splits"][split]:
        data = (directory / shard["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        ids += struct.unpack(f"<{shard['tokens']}{code}", data[:shard["tokens"] * size])
    return ids


@pytest.fixture
def characters(tmp_path, text):
    """A character tokenizer of the text and of ASCII, with an end of text; and how it encodes."""
    (tmp_path / "ascii.txt").write_text("".join(map(chr, range(32, 127))))
    ok("tokenizer", "train", "--input", text, tmp_path / "ascii.txt", "--kind", "char",
       "--special", "<|endoftext|>", "--output", tmp_path / "characters")
    alphabet = sorted(set(STORY + "".join(map(chr, range(32, 127)))))
    return tmp_path / "characters", lambda s: [alphabet.index(c) for c in s], len(alphabet)


def test_shards_hold_what_the_tokenizer_says(tmp_path, text, characters):
    tokenizer, encode, eos = characters
    report = json.loads(ok("data", "--input", text, "--tokenizer", tokenizer, "--output",
                           tmp_path / "shards", "--shard-bytes", "4KiB", "--json"))
    documents = [f"{STORY}{i}" for i in range(50)]
    found, counts = set(), {}
    for split in "train", "validation":
        document, counts[split] = [], 0
        for token in tokens(tmp_path / "shards", split):
            document.append(token)
            if token == eos:
                found.add(tuple(document))
                counts[split] += 1
                document = []
        assert not document
        assert report[split]["documents"] == counts[split]
        assert report[split]["tokens"] == len(tokens(tmp_path / "shards", split))
    assert counts == {"train": 45, "validation": 5}
    assert report["train"]["shards"] > 1
    assert found == {tuple([*encode(d), eos]) for d in documents}
    assert report["text_bytes"] == sum(len(d.encode()) for d in documents)
    again = json.loads(ok("data", "--verify", tmp_path / "shards", "--json"))
    assert again == report
    # The tokenizer goes with them, and will do for more.
    made = (tokenizer / "tokenizer.json").read_bytes()
    assert (tmp_path / "shards/tokenizer.json").read_bytes() == made
    ok("data", "--input", text, "--tokenizer", tmp_path / "shards/tokenizer.json", "--output",
       tmp_path / "more", "--shard-bytes", "4KiB")
    assert manifest(tmp_path / "more") == manifest(tmp_path / "shards")
    assert "already" in refused(1, "data", "--input", text, "--tokenizer", tokenizer, "--output",
                                tmp_path / "shards")


def test_messages_go_through_the_chat_template(tmp_path, characters):
    tokenizer, encode, eos = characters
    lines = [{"messages": [{"role": "user", "content": "Hi"},
                           {"role": "assistant", "content": "Ho"}]},
             {"prompt": "A", "completion": "B"}, {"text": "C"}]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = json.loads(ok("data", "--input", path, "--tokenizer", tokenizer, "--output",
                           tmp_path / "shards", "--val-fraction", 0, "--json"))
    assert report["mask"] is True and report["train"]["documents"] == 3
    # A model without a template: plain lines.
    chat = encode("User: Hi\nAssistant: Ho\n")
    assert tokens(tmp_path / "shards", "train") == [
        *chat, eos, *encode("AB"), eos, *encode("C"), eos]
    # To be learned: " Ho", the line's end, EOS; B, EOS; C, EOS.
    n = len(chat) + 6
    bits = (tmp_path / "shards/train-00000.tokens").read_bytes()[-n // 8:]
    learned = [bits[i // 8] >> i % 8 & 1 for i in range(n)]
    assert learned == [0] * (len(chat) - 4) + [1] * 5 + [0, 1, 1] + [1, 1]


def test_several_inputs_and_globs(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 100)
    one = ok("data", "--input", tmp_path / "*.txt", "--tokenizer", MODEL, "--output",
             tmp_path / "one", "--json")
    two = ok("data", "--tokenizer", MODEL, "--output", tmp_path / "two", "--json", "--input",
             tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt")
    assert json.loads(one)["files"] == json.loads(two)["files"] == 3
    assert tokens(tmp_path / "one", "train") == tokens(tmp_path / "two", "train")
    assert manifest(tmp_path / "one") == manifest(tmp_path / "two")


def test_data_usage_and_errors(tmp_path, text):
    assert "usage: gptd data" in ok("data", "--help")
    assert "--tokenizer" in refused(2, "data", "--input", text, "--output", tmp_path / "x")
    assert "--output" in refused(2, "data", "--input", text, "--tokenizer", MODEL)
    assert "--input" in refused(2, "data", "--tokenizer", MODEL, "--output", tmp_path / "x")
    rest = ["--tokenizer", MODEL, "--output", tmp_path / "x"]
    assert "no file" in refused(1, "data", "--input", tmp_path / "none*.txt", *rest)
    (tmp_path / "latin1.txt").write_bytes("one\ncaf\xe9".encode("latin-1"))
    line = refused(1, "data", "--input", tmp_path / "latin1.txt", *rest)
    assert "line 2, byte 7 of the file (0xE9)" in line and "iconv" in line
    (tmp_path / "utf16.txt").write_bytes(STORY.encode("utf-16"))
    assert "UTF-16" in refused(1, "data", "--input", tmp_path / "utf16.txt", *rest)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    assert "bad.jsonl: line 2" in refused(1, "data", "--input", tmp_path / "bad.jsonl", *rest)
    if os.geteuid() != 0:
        text.chmod(0)
        assert "cannot open" in refused(1, "data", "--input", text, *rest)


def test_killed_while_writing_leaves_no_data_set(tmp_path):
    """What is unfinished has no manifest, and a second run writes it anew."""
    (tmp_path / "big.txt").write_text("".join(f"{STORY}{i}<|endoftext|>" for i in range(40000)))
    arguments = ["data", "--input", tmp_path / "big.txt", "--tokenizer", MODEL, "--output",
                 tmp_path / "shards", "--shard-bytes", "64KiB"]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "shards/train-00003.tokens").exists():
        pass
    process.kill()
    process.wait()
    if not (tmp_path / "shards/manifest.json").exists():
        ok(*arguments)
    ok("data", "--verify", tmp_path / "shards")
