"""What training jobs take: in GET /v1/memory and /metrics. The trainer is tests/fake_trainer.py, whose
memory.json says what the training data's first line tells it to."""

import json
import re

import pytest

import gptd
from gptd import ROOT, memory, wait_until

TRAINER = ROOT / "tests" / "fake_trainer.py"
PRESET = "configs/tiny_char"
COMPONENTS = ["weights", "master", "gradients", "optimizer", "activations", "logits", "kv_cache",
              "workspace", "staging", "data", "host"]


def report(**components):
    parts = dict.fromkeys(COMPONENTS, 0) | components
    numbers = {"planned_bytes": sum(parts.values()), "components": parts, "rss_bytes": 1,
               "peak_rss_bytes": 2, "baseline_bytes": 1000, "unexplained_bytes": 0}
    return json.dumps(numbers, separators=(",", ":"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = gptd.Server("--data-dir", tmp_path_factory.mktemp("data") / "d", "--trainer", TRAINER)
    yield started
    started.stop()


def submit(client, words):
    data = client.files.create(file=("train.txt", f"steps=1000 {words}\n".encode()),
                               purpose="fine-tune")
    return client.fine_tuning.jobs.create(model=PRESET, training_file=data.id)


@pytest.fixture
def running(http, client):
    """Starts a job with these words for the trainer; gives its id and what /v1/memory says of it."""
    jobs = []

    def start(words=""):
        jobs.append(submit(client, words).id)
        wait_until(lambda: memory(http)["jobs"], what="a job in /v1/memory")
        return jobs[-1]
    yield start
    for job in jobs:
        client.fine_tuning.jobs.cancel(job)
    wait_until(lambda: not memory(http)["jobs"], what="no job in /v1/memory")


def entry(http):
    (job,) = memory(http)["jobs"]
    return job


def test_none_runs(http):
    assert memory(http)["jobs"] == []


def test_what_the_trainer_reports(http, running):
    job = running("memory=" + report(weights=5000, gradients=300))
    wait_until(lambda: entry(http)["reported"], what="the trainer's report")
    seen = entry(http)
    assert seen["id"] == job
    assert seen["planned_bytes"] == 5300 and seen["components"]["gradients"] == 300
    # The kernel's word counts, not the trainer's: a Python takes some MiB.
    assert 1 << 20 < seen["rss_bytes"] <= seen["peak_rss_bytes"] < 1 << 30
    assert seen["unexplained_bytes"] == seen["rss_bytes"] - 1000 - 5300
    metrics = http.get("/metrics").text
    assert f'gptd_job_planned_bytes{{job="{job}",component="weights"}} 5000\n' in metrics
    assert re.search(f'gptd_job_memory_bytes{{job="{job}",kind="rss"}} \\d+\n', metrics)
    wait_until(lambda: http.get("/v1/memory?history=1").json()["history"]["samples"][-1]
               ["jobs_rss_bytes"] > 1 << 20, timeout=15, what="the job in the history")


@pytest.mark.parametrize("lie", ["{", "[]", report(weights=-5),
                                 report(weights=5).replace('planned_bytes":5', 'planned_bytes":6'),
                                 report(weights=5).replace('"weights":5', '"weights":1e400')])
def test_a_report_that_cannot_be_true(http, running, lie):
    running("memory=" + lie)
    wait_until(lambda: entry(http)["rss_bytes"] > 1 << 20, what="the kernel's count")
    assert not entry(http)["reported"]
