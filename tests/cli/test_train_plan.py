"""gptd train within a memory budget: what is chosen, what kept, what refused, and what is said."""

import json
import re

import pytest

from gptd import run

CONFIG = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "batch_size": 8,
          "max_iters": 4, "vocab_size": 300, "eval_interval": 0, "save_interval": 2,
          "sample_tokens": 0, "warmup_iters": 0}
DEFAULTS = {"micro_batch_size": 8, "loss_rows": 512, "recompute": "none", "moments": "f32",
            "master": "remainder", "gradients": "f32"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "data.txt"
    path.write_text("\n".join(f"number {i} follows number {i - 1}." for i in range(900)))
    return path


@pytest.fixture
def train(tmp_path, text):
    """Runs gptd train with CONFIG (and changes to it) under options; returns the reply."""
    def start(*options, name="m", **changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**CONFIG, **changes}))
        return run("train", "--config", path, "--model-name", name, "--input", text, "--out-dir",
                   tmp_path, "--threads", 1, "--dtype", "bf16", *options)
    return start


def resolved(tmp_path, name="m"):
    return json.loads((tmp_path / name / "train_config.json").read_text())


def plan(tmp_path, name="m"):
    return {key: resolved(tmp_path, name)[key] for key in DEFAULTS}


def total(reply):
    return int(re.search(r"memory: total +(\d+) bytes", reply.stderr).group(1))


def rows(table):
    """The rows of a table: (chosen, total bytes, seconds)."""
    lines = [line for line in table.splitlines()
             if re.match(r"[* ] +\d+ +(none|selective|block) ", line)]
    return [(line[0] == "*", int(line.split()[11 + (line[0] == "*")]),
             float(line.split()[12 + (line[0] == "*")])) for line in lines]


def test_without_a_budget_the_defaults_stay(train, tmp_path):
    reply = train()
    assert reply.returncode == 0, reply.stderr
    assert plan(tmp_path) == DEFAULTS
    assert "plan: micro_batch_size 8, recompute none" in reply.stderr and "tokens/s" in reply.stderr
    assert "% of peak)" in reply.stderr
    line = json.loads((tmp_path / "m" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["flops_per_s"] > 0 and line["mfu"] > 0
    assert line["flops_per_s"] / line["mfu"] > 1e6  # the peak


def test_budgets_down_to_the_smallest(train, tmp_path):
    free = total(train(name="free"))
    sizes = []
    for name, budget in ("large", 1 << 30), ("half", free // 2):
        reply = train("--memory-budget", f"{budget}B", name=name)
        assert reply.returncode == 0, reply.stderr
        sizes.append(total(reply))
        assert sizes[-1] <= budget
        assert all(value not in (0, "auto") for value in plan(tmp_path, name).values())
    assert sizes[1] < sizes[0]
    reply = train("--memory-budget", "1MB", name="none")
    assert reply.returncode == 3
    assert "over the memory budget of 1000000" in reply.stderr.splitlines()[-1]
    nearest = rows(reply.stderr)
    assert nearest and all(seconds > 0 for _, _, seconds in nearest)
    smallest = int(re.search(r"training needs (\d+) bytes at the least", reply.stderr).group(1))
    assert smallest == nearest[-1][1]
    assert [r[1] for r in nearest] == sorted((r[1] for r in nearest), reverse=True)
    reply = train("--memory-budget", f"{smallest}B", name="least")
    assert reply.returncode == 0, reply.stderr
    assert total(reply) == smallest
    assert train("--memory-budget", f"{smallest - 1}B", name="less").returncode == 3


def test_what_is_given_stays(train, tmp_path):
    reply = train("--memory-budget", "1GiB", "--moments", "q8", "--micro-batch-size", 2,
                  recompute="block", loss_rows=64)
    assert reply.returncode == 0, reply.stderr
    chosen = plan(tmp_path)
    assert (chosen["moments"], chosen["micro_batch_size"], chosen["recompute"],
            chosen["loss_rows"]) == ("q8", 2, "block", 64)
    reply = train("--memory-budget", "1MB", "--moments", "f32", name="n")
    assert reply.returncode == 3 and "may be left out" in reply.stderr
    assert "q8" not in reply.stderr


def test_explain(train):
    reply = train("--memory-budget", "20MB", "--explain")
    assert reply.returncode == 0, reply.stderr
    assert "GFLOP/s" in reply.stdout and "GB/s (measured now)" in reply.stdout
    assert "memory budget 20000000 bytes" in reply.stdout
    table = rows(reply.stdout)
    assert [chosen for chosen, _, _ in table].count(True) == 1 and table[0][0] and len(table) > 2
    assert table[0][1] == total(reply)
    assert all(size < table[0][1] for _, size, _ in table[1:])
    assert re.search(r"-\d+\.\d MB, time \+", reply.stdout)
    assert re.search(r"(\d+) plans compared, (\d+) fit", reply.stdout)


def test_a_resumed_run_keeps_what_it_began_with(train, tmp_path):
    whole = train("--memory-budget", "4MB", name="whole")
    assert whole.returncode == 0, whole.stderr
    begun = plan(tmp_path, "whole")
    assert {**begun, "recompute": "none"} != DEFAULTS
    for step in (tmp_path / "whole" / "checkpoints").glob("step-4"):
        (step / "manifest.json").unlink()
    # Under another budget, from step 2: the same bits, though recompute may differ.
    reply = train("--memory-budget", "1GiB", "--resume", name="whole")
    assert reply.returncode == 0, reply.stderr
    again = plan(tmp_path, "whole")
    assert {**again, "recompute": ""} == {**begun, "recompute": ""}
    # What is fastest depends on how busy the machine is: this one is told.
    other = train(name="other", **begun)
    assert other.returncode == 0
    assert ((tmp_path / "whole/model.safetensors").read_bytes()
            == (tmp_path / "other/model.safetensors").read_bytes())
    reply = train("--memory-budget", "1MB", "--resume", name="whole")
    assert reply.returncode == 3 and "over the memory budget" in reply.stderr
