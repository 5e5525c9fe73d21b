"""`gptd convert`: the same model from every format, whole files or none, and clear refusals."""

import hashlib
import json
import random
import resource
import subprocess
import time

import pytest

from gptd import MODEL, ROOT, command, run

PROMPT = "ROMEO:\nWhat, "


def convert(model, output, *options, **kwargs):
    return run("convert", "--model", model, "--output", output, *options, **kwargs)


def text_of(model, dtype="f32"):
    reply = run("generate", "--model", model, "--prompt", PROMPT, "--max-new-tokens", 40,
                "--temperature", 0, "--dtype", dtype)
    assert reply.returncode == 0, reply.stderr
    return reply.stdout


def inspect(model):
    reply = run("inspect", model, "--json")
    assert reply.returncode == 0, reply.stderr
    return json.loads(reply.stdout)


def manifest_agrees(directory):
    files = json.loads((directory / "manifest.json").read_text())["files"]
    for name, entry in files.items():
        data = (directory / name).read_bytes()
        assert len(data) == entry["bytes"], name
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
    return set(files)


@pytest.fixture(scope="module")
def expected():
    return text_of(MODEL)


def test_to_gguf_and_back(tmp_path, expected):
    there, back = tmp_path / "model.gguf", tmp_path / "back"
    reply = convert(MODEL, there)
    assert reply.returncode == 0, reply.stderr
    assert reply.stdout == f"{there}: gguf, bf16, byte-level BPE, gpt2, 1024 tokens\n"
    assert text_of(there) == expected
    assert convert(there, back).returncode == 0
    assert text_of(back) == expected
    assert manifest_agrees(back) == {"config.json", "generation_config.json", "model.safetensors",
                                     "tokenizer.json", "tokenizer_config.json"}
    a, b = inspect(MODEL), inspect(back)
    assert a["config"] == b["config"] and a["tokenizer"] == b["tokenizer"]


def test_the_format_follows_from_the_name_unless_it_is_given(tmp_path):
    assert convert(MODEL, tmp_path / "a.GGUF").returncode == 0
    assert inspect(tmp_path / "a.GGUF")["format"] == "gguf"
    assert convert(MODEL, tmp_path / "b", "--format", "gguf").returncode == 0
    assert inspect(tmp_path / "b")["format"] == "gguf"
    assert convert(MODEL, tmp_path / "c.gguf", "--format", "hf").returncode == 0
    assert inspect(tmp_path / "c.gguf")["format"] == "huggingface"


@pytest.mark.parametrize("dtype, size", [("f32", 4), ("f16", 2), ("bf16", 2), ("q8_0", 34 / 32)])
def test_element_types(tmp_path, dtype, size):
    output = tmp_path / "model.gguf"
    assert convert(MODEL, output, "--dtype", dtype).returncode == 0
    report = inspect(output)
    assert report["dtype"] == dtype
    assert report["file_bytes"] == pytest.approx(report["parameters"]["total"] * size, rel=0.02)
    assert len(text_of(output)) > 50
    # What is quantized stays so unless a type is asked for; the plan counts it.
    kept = report["memory"].get("auto")
    assert (kept is not None) == (dtype == "q8_0")
    plan = [json.loads(run("plan", "--model", output, "--json", *more).stdout)["generation"]
            for more in ((), ("--dtype", "bf16"))]
    assert [p["options"]["dtype"] for p in plan] == ["q8_0" if kept else "bf16", "bf16"]
    if kept:
        assert plan[0]["components"]["weights"] == pytest.approx(kept["weight_bytes"], rel=0.02)
        assert text_of(output, "auto") == text_of(output, "q8_0")
        assert plan[1]["components"]["weights"] > 1.8 * plan[0]["components"]["weights"]


def test_a_directory_keeps_the_files_of_its_tokenizer(tmp_path):
    assert convert(MODEL, tmp_path / "out").returncode == 0
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (MODEL / name).read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((MODEL / "config.json").read_text())
    assert config == original


@pytest.mark.parametrize("name", ["gpt2", "llama3", "mistral", "qwen2", "qwen3"])
def test_models_without_a_tokenizer(tmp_path, name):
    source = ROOT / "tests/golden" / name
    for output in (tmp_path / "x.gguf", tmp_path / "x"):
        reply = convert(source, output, "--dtype", "f32")
        assert reply.returncode == 0, reply.stderr
        assert "no tokenizer" in reply.stdout
        a, b = inspect(source)["config"], inspect(output)["config"]
        # GGUF has the factors of Llama 3's scaling, from which only ratios come back.
        for key in ("rope_original_context", "rope_low_freq", "rope_high_freq"):
            a.pop(key, None), b.pop(key, None)
        assert a == b


# ---- Refusals ----


@pytest.mark.parametrize("options, code, says", [
    ([], 2, "say what and where to"),
    (["--model", MODEL], 2, "say what and where to"),
    (["--model", MODEL, "--output", "OUT", "--format", "onnx"], 2, "must be hf or gguf"),
    (["--model", MODEL, "--output", "OUT", "--dtype", "q4_0"], 2, "f32, bf16, f16 or q8_0"),
    (["--model", MODEL, "--output", "OUT", "--dtype", "q8_0"], 2, "needs --format gguf"),
    (["--model", MODEL, "--output", MODEL, "--overwrite"], 2, "is the model itself"),
    (["--model", "/nowhere", "--output", "OUT"], 1, "/nowhere"),
    (["--model", MODEL, "--output", "/nowhere/x.gguf"], 1, "/nowhere/x.gguf"),
    (["--model", MODEL, "--output", "/proc/x"], 1, "/proc/x"),
    (["--model", ROOT / "tests/golden/gpt2_untied", "--output", "OUT.gguf"], 1, "exact GELU"),
])
def test_refusals_say_why(tmp_path, options, code, says):
    reply = run("convert", *(str(o).replace("OUT", str(tmp_path / "out")) for o in options))
    assert reply.returncode == code
    assert says in reply.stderr and reply.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path):
    output = tmp_path / "x.gguf"
    output.write_text("mine")
    reply = convert(MODEL, output)
    assert reply.returncode == 2 and "exists" in reply.stderr
    assert output.read_text() == "mine"
    assert convert(MODEL, output, "--overwrite").returncode == 0
    assert inspect(output)["format"] == "gguf"
    assert convert(MODEL, tmp_path / "dir").returncode == 0
    reply = convert(MODEL, tmp_path / "dir")
    assert reply.returncode == 2 and "holds files already" in reply.stderr
    reply = convert(MODEL, tmp_path / "dir", "--overwrite", "--dtype", "f32")
    assert reply.returncode == 0
    assert inspect(tmp_path / "dir")["dtype"] == "f32"
    manifest_agrees(tmp_path / "dir")
    reply = convert(MODEL, tmp_path / "dir", "--overwrite", "--format", "gguf")
    assert reply.returncode == 1 and "is a directory" in reply.stderr
    (tmp_path / "notes").mkdir()
    assert convert(MODEL, tmp_path / "notes").returncode == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    reply = convert(MODEL, tmp_path / "other")
    assert reply.returncode == 2 and "holds files already" in reply.stderr
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


# ---- Accidents ----


def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.parametrize("name", ["x.gguf", "x"])
def test_a_full_disk_leaves_no_file(tmp_path, name):
    reply = convert(MODEL, tmp_path / name, preexec_fn=full_disk)
    assert reply.returncode == 1
    assert "cannot write" in reply.stderr and "File too large" in reply.stderr
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == []


def test_killed_at_any_moment(tmp_path):
    """What has its final name is whole, and a manifest means that all is there."""
    begin = time.monotonic()
    assert convert(MODEL, tmp_path / "whole").returncode == 0
    duration = time.monotonic() - begin
    random.seed(1)
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}
    killed = 0
    for i in range(15):
        output = tmp_path / str(i)
        process = subprocess.Popen(command("convert", "--model", MODEL, "--output", output),
                                   cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(random.random() * duration)
        process.kill()
        killed += process.wait() != 0
        for path in output.iterdir() if output.is_dir() else []:
            if path.suffix != ".tmp" and path.name != "config.json":
                assert path.read_bytes() == whole[path.name], path
        if (output / "manifest.json").exists():
            manifest_agrees(output)
        # The next run takes over what the killed one left.
        assert convert(MODEL, output, "--overwrite").returncode == 0
        manifest_agrees(output)
        assert not list(output.glob("*.tmp"))
    assert killed > 0
