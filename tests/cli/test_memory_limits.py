"""The plan is what a process takes: the kernel's high-water mark of real runs against plan and
baseline, and runs that are held to the plan and a stated margin by the kernel itself."""

import json
import re
import resource
import subprocess
import threading
import time
from pathlib import Path

import pytest

import gptd
from gptd import PATIENCE, ROOT, SANITIZED, command, complete, memory

pytestmark = pytest.mark.skipif(SANITIZED, reason="shadow memory is in no plan")

MIB = 1 << 20
# Beyond plan and baseline: a tokenizer, stacks and libraries' data. The larger of the two counts.
MARGIN_BYTES, MARGIN_SHARE = 16 * MIB, 0.02
# RLIMIT_DATA counts all private memory that could be written, touched or not: stacks of 1 MiB a
# thread, libraries' data, malloc's heaps.
LIMIT_MARGIN = 24 * MIB
PRESETS = {"tiny_char": [], "tiny": ["--micro-batch-size", 2, "--loss-rows", 64]}


def allowed(planned, baseline):
    return planned + baseline + max(MARGIN_BYTES, int(MARGIN_SHARE * planned))


def peak_of(pid):
    """The kernel's high-water mark; 0 when the process is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found.group(1)) * 1024 if found else 0


def limited(limit):
    """For a child, before it becomes gptd."""
    if limit:
        return lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return None


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The shipped model's own text would do; a file of sentences is enough."""
    path = tmp_path_factory.mktemp("text") / "data.txt"
    path.write_text("".join(f"{i} is the number, and its square is {i * i}.\n"
                            for i in range(5000)))
    return path


def train(out, text, preset, limit=0):
    """Two steps with an evaluation and a checkpoint: memory.json, and the peak seen from here."""
    process = subprocess.Popen(
        command("train", "--config", ROOT / "configs" / f"{preset}.json", "--model-name", "m",
                "--out-dir", out, "--overwrite", "--input", text, "--max-iters", 2, "--threads", 2,
                "--eval-interval", 2, "--eval-iters", 1, "--sample-tokens", 4,
                "--batch-size", 2, *PRESETS[preset]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=limited(limit), cwd=ROOT)
    seen = [0]

    def watch():
        while process.poll() is None:
            seen[0] = max(seen[0], peak_of(process.pid))
            time.sleep(0.01)
    watcher = threading.Thread(target=watch)
    watcher.start()
    complaint = process.communicate(timeout=60 * PATIENCE)[1]
    watcher.join()
    assert process.returncode == 0, complaint
    return json.loads((out / "m" / "memory.json").read_text()), seen[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_training_takes_its_plan(tmp_path, text, preset):
    report, peak = train(tmp_path, text, preset)
    planned, baseline = report["planned_bytes"], report["baseline_bytes"]
    assert planned == sum(report["components"].values()) and baseline < 32 * MIB
    assert planned < report["peak_rss_bytes"] <= peak + MIB <= allowed(planned, baseline)

    # The plan alone, as a limit, is what kills it; with the margin it runs, to the same plan.
    again, _ = train(tmp_path, text, preset, limit=planned + LIMIT_MARGIN)
    assert again["planned_bytes"] == planned


def test_a_limit_below_the_plan_is_an_error_and_not_a_crash(tmp_path, text):
    with pytest.raises(AssertionError, match="cannot|refused|allocat"):
        train(tmp_path, text, "tiny_char", limit=40 * MIB)


def load(http):
    """Everything that serving does with memory."""
    for n in (1, 4):
        complete(http, prompt="ROMEO:\n" * 40, max_tokens=50, n=n, logprobs=5)
    complete(http, prompt=["A", "B", "C"], max_tokens=20)
    complete(http, prompt="To be, or not to be", max_tokens=0, echo=True, logprobs=1)


@pytest.mark.parametrize("limit", [False, True])
def test_serving_takes_its_plan(limit):
    """With a limit: of the planned bytes and the margin."""
    probe = gptd.Server("--threads", 2)
    with probe.client() as http:
        planned = memory(http)["devices"][0]["planned_bytes"]
    probe.stop()
    server = gptd.Server("--threads", 2, preexec_fn=limited(planned + LIMIT_MARGIN if limit else 0))
    with server.client() as http:
        load(http)
        reply = memory(http)
        process = reply["process"]
        assert reply["devices"][0]["allocated_bytes"] == planned
        peak = peak_of(server.pid)
    server.stop()
    assert planned < peak <= allowed(planned, process["baseline_bytes"])
