"""gptd train and gptd eval as people run them: what a run leaves behind, what is refused, signals,
and kill -9 at any moment."""

import filecmp
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from gptd import ROOT, SANITIZED, command, run

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "dropout": 0.1, "batch_size": 4,
        "max_iters": 30, "learning_rate": 0.003, "eval_interval": 10, "eval_iters": 2,
        "save_interval": 7, "sample_tokens": 16}
KILLS = 10 if SANITIZED else 50


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of sentences."""
    rng = random.Random(1)
    words = "the a my old cat dog bird sees finds likes and then never again".split()
    path = tmp_path_factory.mktemp("text") / "data.txt"
    path.write_text("\n".join(" ".join(rng.choices(words, k=6)) + "." for _ in range(700)))
    return path


@pytest.fixture
def config(tmp_path):
    """Writes a config: TINY with changes."""
    def write(**changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**TINY, **changes}))
        return path
    return write


def arguments(tmp_path, config, text, *more, name="m"):
    return ["train", "--config", config, "--model-name", name, "--input", text, "--out-dir",
            tmp_path / "models", "--threads", 2, *more]


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def steps(directory):
    """The steps whose checkpoints are complete."""
    return sorted(int(p.parent.name[5:])
                  for p in (directory / "checkpoints").glob("step-*/manifest.json"))


@pytest.mark.parametrize("name", ["train", "eval"])
def test_help(name):
    reply = run(name, "--help")
    assert reply.returncode == 0 and not reply.stderr
    assert f"usage: gptd {name} " in reply.stdout
    assert all(len(line) <= 110 for line in reply.stdout.splitlines())
    for option in set(re.findall(r"^ +--([a-z0-9][a-z0-9-]*)", reply.stdout, re.M)) - {"options"}:
        assert "there is no option" not in run(name, f"--{option}=", "--help").stderr, option


def test_every_key_of_a_config_is_a_flag(tmp_path, config, text):
    assert run(*arguments(tmp_path, config(), text, "--max-iters", 1)).returncode == 0
    help_text = run("train", "--help").stdout
    keys = json.loads((tmp_path / "models/m/train_config.json").read_text())
    training = list(keys)[list(keys).index("batch_size"):]
    assert len(training) >= 36
    for key in training:
        assert f"--{key.replace('_', '-')} " in help_text, key


def test_what_a_run_leaves(tmp_path, config, text):
    reply = run(*arguments(tmp_path, config(), text))
    assert reply.returncode == 0, reply.stderr
    model = tmp_path / "models" / "m"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json",
                 "train_config.json", "metrics.jsonl", "samples.txt", "checkpoints/best"):
        assert (model / name).exists(), name
    lines = metrics(model)
    assert [line["step"] for line in lines] == list(range(1, 31))
    for line in lines:
        assert {"step", "loss", "lr", "grad_norm", "tokens_per_s", "memory_bytes"} <= set(line)
        assert ("val_loss" in line) == (line["step"] % 10 == 0)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    hf = json.loads((model / "config.json").read_text())
    assert hf["model_type"] == "gpt2" and hf["n_layer"] == 2
    resolved = json.loads((model / "train_config.json").read_text())
    assert resolved["vocab_size"] == hf["vocab_size"] and resolved["min_lr"] == pytest.approx(3e-4)
    assert "memory: total" in reply.stderr and "loss" in reply.stderr
    assert "\r" not in reply.stderr, "no terminal, no rewritten line"
    reply = run("generate", "--model", model, "--prompt", "the ", "--max-new-tokens", 5)
    assert reply.returncode == 0 and len(reply.stdout) > 4
    reply = run("inspect", model)
    assert reply.returncode == 0


def test_profile(tmp_path, config, text):
    """Tables on stderr, and the same bits as without."""
    reply = run(*arguments(tmp_path, config(), text, "--profile"))
    assert reply.returncode == 0, reply.stderr
    for line in (r"^matmul f32 128 x 32 +1?\d\d ", r"^adamw +\d+ ", r"^between operations "):
        assert re.search(line, reply.stderr, re.M), reply.stderr
    assert run(*arguments(tmp_path, config(), text, name="plain")).returncode == 0
    model = tmp_path / "models" / "m"
    assert filecmp.cmp(model / "model.safetensors", tmp_path / "models/plain/model.safetensors",
                       shallow=False)
    reply = run("generate", "--model", model, "--prompt", "the ", "--max-new-tokens", 5,
                "--profile")
    assert reply.returncode == 0 and re.search(r"^sample +\d+ ", reply.stderr, re.M)


def test_resolved_config_is_a_config(tmp_path, config, text):
    assert run(*arguments(tmp_path, config(), text)).returncode == 0
    model = tmp_path / "models" / "m"
    reply = run(*arguments(tmp_path, model / "train_config.json", text, "--tokenizer", model,
                           name="again"))
    assert reply.returncode == 0, reply.stderr
    assert filecmp.cmp(tmp_path / "models/m/model.safetensors",
                       tmp_path / "models/again/model.safetensors", shallow=False)


def test_flags_count_more_than_the_file(tmp_path, config, text):
    reply = run(*arguments(tmp_path, config(), text, "--max-iters", 3, "--learning-rate", "1e-4",
                           "--warmup-iters", 0, "--lr-schedule", "constant",
                           "--no-freeze-embeddings"))
    assert reply.returncode == 0, reply.stderr
    lines = metrics(tmp_path / "models" / "m")
    assert len(lines) == 3 and {line["lr"] for line in lines} == {1e-4}
    resolved = json.loads((tmp_path / "models/m/train_config.json").read_text())
    assert resolved["lr_schedule"] == "constant" and resolved["batch_size"] == 4


def test_a_run_shorter_than_its_warm_up_says_so(tmp_path, config, text):
    reply = run(*arguments(tmp_path, config(), text, "--max-iters", 2, "--warmup-iters", 5))
    assert reply.returncode == 0, reply.stderr
    assert reply.stderr.count("warmup_iters is 5 and the run has 2 steps") == 1


@pytest.mark.parametrize("more", [
    ["--dtype", "bf16"], ["--dtype", "bf16", "--moments", "q8", "--recompute", "block"],
    ["--keep-documents-apart"], ["--grad-accum-steps", 3, "--micro-batch-size", 2],
    ["--sequence-length", 8]])
def test_modes_learn(tmp_path, config, text, more):
    reply = run(*arguments(tmp_path, config(), text, *more))
    assert reply.returncode == 0, reply.stderr
    lines = metrics(tmp_path / "models" / "m")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.4


def test_byte_level_tokenizer_is_made(tmp_path, config, text):
    reply = run(*arguments(tmp_path, config(vocab_size=400), text, "--max-iters", 2))
    assert reply.returncode == 0, reply.stderr
    model = tmp_path / "models" / "m"
    assert json.loads((model / "config.json").read_text())["vocab_size"] == 400
    assert json.loads((model / "tokenizer.json").read_text())["model"]["type"] == "BPE"
    assert run("generate", "--model", model, "--prompt", "the", "--max-new-tokens",
               3).returncode == 0


def test_init_from(tmp_path, config, text):
    assert run(*arguments(tmp_path, config(), text)).returncode == 0
    base = tmp_path / "models" / "m"
    reply = run("train", "--init-from", base, "--model-name", "tuned", "--input", text, "--out-dir",
                tmp_path / "models", "--max-iters", 3, "--batch-size", 4)
    assert reply.returncode == 0, reply.stderr
    tuned = tmp_path / "models" / "tuned"
    resolved = json.loads((tuned / "train_config.json").read_text())
    assert not list(base.glob("*.link"))  # the last checkpoint's weights, linked twice
    assert resolved["learning_rate"] == 1e-4 and resolved["min_lr"] == pytest.approx(1e-5)
    assert metrics(tuned)[0]["loss"] < metrics(base)[0]["loss"] - 0.3
    assert filecmp.cmp(base / "tokenizer.json", tuned / "tokenizer.json", shallow=False)
    reply = run(*arguments(tmp_path, config(n_layer=3), text, "--init-from", base, name="other"))
    assert reply.returncode == 2 and "n_layer" in reply.stderr


def test_init_from_a_gguf_file(tmp_path, config, text):
    """Quantized weights are widened; the tokenizer in the file goes with the model."""
    assert run(*arguments(tmp_path, config(bias=True, norm_type="layernorm", vocab_size=300), text,
                          "--max-iters", 3)).returncode == 0
    base, gguf = tmp_path / "models" / "m", tmp_path / "m.gguf"
    reply = run("convert", "--model", base, "--output", gguf, "--dtype", "q8_0")
    assert reply.returncode == 0, reply.stderr
    reply = run("train", "--init-from", gguf, "--model-name", "tuned", "--input", text, "--out-dir",
                tmp_path / "models", "--max-iters", 2, "--batch-size", 4)
    assert reply.returncode == 0, reply.stderr
    tuned = tmp_path / "models" / "tuned"
    assert json.loads((tuned / "config.json").read_text())["vocab_size"] == 300
    reply = run("generate", "--model", tuned, "--prompt", "the cat", "--max-new-tokens", 3)
    assert reply.returncode == 0 and reply.stdout, reply.stderr
    losses = [json.loads(run("eval", "--model", model, "--input", text, "--json").stdout)["loss"]
              for model in (base, gguf)]
    assert losses[1] == pytest.approx(losses[0], abs=0.01)


def test_several_evaluation_sets(tmp_path, config, text):
    other = tmp_path / "other.txt"
    other.write_text("the old cat sees my bird again.\n" * 20)
    reply = run(*arguments(tmp_path, config(), text, "--val-input", other, "--val-input", text))
    assert reply.returncode == 0, reply.stderr
    last = metrics(tmp_path / "models" / "m")[-1]
    assert set(last["val_losses"]) == {"other.txt", "data.txt"}
    assert last["val_loss"] == last["val_losses"]["other.txt"]


def test_eval_agrees_with_training(tmp_path, config, text):
    reply = run(*arguments(tmp_path, config(eval_iters=100000, dropout=0), text, "--val-input",
                           text))
    assert reply.returncode == 0, reply.stderr
    model = tmp_path / "models" / "m"
    reply = run("eval", "--model", model, "--input", text, "--json")
    assert reply.returncode == 0, reply.stderr
    found = json.loads(reply.stdout)
    # metrics.jsonl has nine digits.
    assert found["loss"] == pytest.approx(metrics(model)[-1]["val_loss"], rel=1e-8)
    assert found["tokens"] == len(text.read_text()) - 1
    reply = run("eval", "--model", model, "--input", text)
    assert reply.stdout.startswith(f"loss {found['loss']:.6f}  perplexity ")
    reply = run("eval", "--model", model, "--input", text, "--json", "--kv-dtype", "q8_0")
    quantized = json.loads(reply.stdout)
    assert quantized["memory_bytes"] < found["memory_bytes"]
    assert 0 < abs(quantized["loss"] - found["loss"]) < 0.01 * found["loss"]


@pytest.mark.parametrize("more, code, words", [
    (["--batch-sise", "3"], 2, ["--batch-sise", "--batch-size"]),
    (["--batch-size", "0"], 2, ["batch-size", "from 1"]),
    (["--lr-schedule", "cos"], 2, ["cosine, linear, constant, wsd"]),
    (["--min-lr", "1"], 2, ["min_lr", "above learning_rate"]),
    (["--model-name", "../x"], 2, ["model-name"]),
    (["--sequence-length", "64"], 2, ["sequence_length", "block_size"]),
    (["--freeze-layers", "3"], 2, ["freeze_layers", "2 layers"]),
    (["--device", "cuda:0"], 1, ["CUDA"]),
    (["--memory-budget", "100KiB"], 3, ["training needs", "over the memory budget"]),
    (["--tokenizer", "/nowhere"], 1, ["/nowhere"]),
    (["--init-from", "/nowhere"], 1, ["/nowhere"]),
    (["--input", "/nowhere.txt"], 1, ["/nowhere.txt"]),
    (["--val-input", "/nowhere.txt"], 1, ["/nowhere.txt"]),
    (["--resume", "--overwrite"], 2, ["--resume", "--overwrite"]),
])
def test_what_is_refused(tmp_path, config, text, more, code, words):
    reply = run(*arguments(tmp_path, config(), text, *more))
    assert reply.returncode == code, reply.stderr
    last = reply.stderr.strip().splitlines()[-1]
    assert last.startswith("gptd train: ")
    assert all(word in last for word in words), last


@pytest.mark.parametrize("missing", ["--config", "--model-name", "--input"])
def test_what_is_missing_is_named(tmp_path, config, text, missing):
    given = list(map(str, arguments(tmp_path, config(), text)))
    at = given.index(missing)
    reply = run(*given[:at], *given[at + 2:])
    assert reply.returncode == 2 and missing in reply.stderr


def test_unknown_key_in_the_config(tmp_path, config, text):
    reply = run(*arguments(tmp_path, config(learning_rte=1), text))
    assert reply.returncode != 0
    assert "learning_rte" in reply.stderr and "learning_rate" in reply.stderr


def test_a_run_is_not_lost_by_accident(tmp_path, config, text):
    assert run(*arguments(tmp_path, config(), text, "--max-iters", 2)).returncode == 0
    reply = run(*arguments(tmp_path, config(), text, "--max-iters", 2))
    assert reply.returncode == 2 and "--resume" in reply.stderr and "--overwrite" in reply.stderr
    reply = run(*arguments(tmp_path, config(), text, "--max-iters", 3, "--overwrite"))
    assert reply.returncode == 0, reply.stderr
    model = tmp_path / "models" / "m"
    assert len(metrics(model)) == 3 and steps(model) == [3]


def test_resume_refuses_another_run(tmp_path, config, text):
    assert run(*arguments(tmp_path, config(), text, "--max-iters", 2)).returncode == 0
    reply = run(*arguments(tmp_path, config(), text, "--max-iters", 2, "--resume", "--seed", 7))
    assert reply.returncode == 2 and "seed" in reply.stderr
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + " again")
    reply = run(*arguments(tmp_path, config(), other, "--max-iters", 2, "--resume"))
    assert reply.returncode == 2 and "training data" in reply.stderr
    reply = run(*arguments(tmp_path, config(n_embd=48), text, "--max-iters", 2, "--resume"))
    assert reply.returncode == 2 and "n_embd" in reply.stderr
    # Without --config it is the run's own.
    reply = run("train", "--model-name", "m", "--input", text, "--out-dir", tmp_path / "models",
                "--resume")
    assert reply.returncode == 0, reply.stderr


# ---- ends from outside ----

class Training:
    """A run as a child process."""

    def __init__(self, *args):
        self.log = subprocess.PIPE
        self.process = subprocess.Popen(command(*args), cwd=ROOT, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_for(self, path, timeout=60):
        end = time.monotonic() + timeout
        while not path.exists() or not path.stat().st_size:
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.005)

    def end(self, timeout=60):
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_a_checkpoint(tmp_path, config, text, number):
    path = config(max_iters=100000, save_interval=0, eval_interval=0)
    model = tmp_path / "models" / "m"
    training = Training(*arguments(tmp_path, path, text))
    training.wait_for(model / "metrics.jsonl")
    training.process.send_signal(number)
    code, output = training.end()
    assert code == 0, output
    assert "--resume" in output.splitlines()[-1]
    done = len(metrics(model))
    assert steps(model) == [done]
    training = Training(*arguments(tmp_path, path, text, "--resume"))
    end = time.monotonic() + 60
    while len((model / "metrics.jsonl").read_bytes().splitlines()) <= done:
        assert time.monotonic() < end
        time.sleep(0.005)
    training.process.send_signal(number)
    code, output = training.end()
    assert code == 0 and f"going on after step {done}" in output
    assert [line["step"] for line in metrics(model)] == list(range(1, len(metrics(model)) + 1))


def test_a_second_signal_does_not_wait(tmp_path, config, text):
    path = config(max_iters=100000, batch_size=4096, save_interval=0, eval_interval=0,
                  sample_tokens=0)
    model = tmp_path / "models" / "m"
    training = Training(*arguments(tmp_path, path, text))
    training.wait_for(model / "metrics.jsonl", timeout=240)
    training.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    training.process.send_signal(signal.SIGTERM)
    code, _ = training.end()
    # A step takes seconds; if the first signal met its very end, the run ended as it should.
    assert code in (128 + signal.SIGTERM, 0)


def test_two_trainers_do_not_share_a_directory(tmp_path, config, text):
    path = config(max_iters=100000, eval_interval=0)
    training = Training(*arguments(tmp_path, path, text))
    training.wait_for(tmp_path / "models" / "m" / "metrics.jsonl")
    reply = run(*arguments(tmp_path, path, text, "--resume"))
    assert reply.returncode == 1 and "another gptd train" in reply.stderr
    training.process.kill()
    training.end()


def check_same_run(a, b, last_step):
    for name in ("model.safetensors", f"checkpoints/step-{last_step}/optimizer.safetensors",
                 f"checkpoints/step-{last_step}/trainer_state.json", "config.json",
                 "tokenizer.json"):
        assert filecmp.cmp(a / name, b / name, shallow=False), name

    def facts(line):
        return line["step"], line["loss"], line["grad_norm"], line.get("val_loss")
    assert [facts(line) for line in metrics(a)] == [facts(line) for line in metrics(b)]
    assert os.readlink(a / "checkpoints/best") == os.readlink(b / "checkpoints/best")
    assert len(steps(b)) <= 3 and not list(b.rglob("*.tmp"))


def test_kill_at_any_moment(tmp_path, config, text):
    """A run that is killed again and again comes to the same bytes as one that is not."""
    path = config(max_iters=200, save_interval=5, eval_interval=20, keep_checkpoints=2)
    assert run(*arguments(tmp_path, path, text, name="whole")).returncode == 0
    whole, killed = tmp_path / "models" / "whole", tmp_path / "models" / "killed"
    rng = random.Random(7)
    newest, kills = 0, 0
    while kills < KILLS:
        training = Training(*arguments(tmp_path, path, text, "--resume", name="killed"))
        time.sleep(rng.uniform(0.0, 0.2) * (10 if SANITIZED else 1))
        training.process.kill()
        code, output = training.end()
        if code == 0:  # too late: once more, from the beginning
            check_same_run(whole, killed, 200)
            shutil.rmtree(killed)
            newest = 0
            continue
        assert code == -signal.SIGKILL, output
        kills += 1
        before, newest = newest, max(steps(killed), default=0)
        assert newest >= before, "it never falls back behind a complete checkpoint"
    reply = run(*arguments(tmp_path, path, text, "--resume", name="killed"), timeout=120)
    assert reply.returncode == 0, reply.stderr
    check_same_run(whole, killed, 200)
