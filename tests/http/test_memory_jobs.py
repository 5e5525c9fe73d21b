"""What training jobs take: in GET /v1/memory and /metrics. The trainer is tests/fake_trainer.py,
whose memory.json says what the training data's first line tells it to."""

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
    """Starts a job with these words for the trainer: its id, and what /v1/memory says of it."""
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


# ---- admission: a plan must fit beside what is resident


MIB = 1 << 20
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A server with 200 MiB for training, where two jobs may run at once."""
    started = gptd.Server("--data-dir", tmp_path_factory.mktemp("data") / "d", "--trainer", TRAINER,
                          "--training-memory", "200MiB", "--max-jobs", 2)
    yield started
    started.stop()


def create(http, model, words="steps=1000", **more):
    data = http.post("/v1/files", files={"file": ("train.txt", f"{words}\n".encode())},
                     data={"purpose": "fine-tune"}).json()["id"]
    return http.post(JOBS, json={"model": model, "training_file": data, **more})


def budget_of(server, http, job):
    """The --memory-budget that the trainer was started with."""
    folder = next(gptd.Path(path) for path in server.process.args if str(path).endswith("/d"))
    log = folder / "jobs" / job / "stdout.log"
    wait_until(lambda: log.exists() and log.read_text().strip(), what="the trainer's first words")
    (word,) = [w for w in json.loads(log.read_text().splitlines()[0])["argv"]
               if w.startswith("--memory-budget=")]
    return int(re.fullmatch(r"--memory-budget=(\d+)B", word).group(1))


def numbers(text):
    """What it needs, what there is, and how much that is short."""
    needs = int(re.search(r"needs (\d+) bytes", text).group(1))
    there = int(re.search(r"(\d+) are there for training", text).group(1))
    short = int(re.search(r"(\d+) too few", text).group(1))
    assert needs - there == short > 0
    return needs, there


def test_a_job_that_can_never_fit_is_refused_with_the_numbers(narrow):
    with narrow.client() as http:
        before = http.get(JOBS).json()["data"]
        reply = create(http, "configs/small")
        assert reply.status_code == 409, reply.text
        error = gptd.check_error(reply)
        assert error["code"] == "does_not_fit"
        needs, there = numbers(error["message"])
        assert there == 200 * MIB and needs > 30_000_000 * 6
        assert "--training-memory" in error["message"]
        assert http.get(JOBS).json()["data"] == before


def test_one_that_does_not_fit_now_waits_and_says_why(narrow):
    with narrow.client() as http:
        first = create(http, PRESET).json()["id"]
        wait_until(lambda: http.get(f"{JOBS}/{first}").json()["status"] == "running",
                   what="the first")
        held = budget_of(narrow, http, first)
        assert 100 * MIB < held < 200 * MIB

        second = create(http, PRESET, words="steps=3").json()["id"]
        third = create(http, PRESET, words="steps=3").json()["id"]
        wait_until(lambda: http.get(f"{JOBS}/{second}").json()["queued_reason"], what="a reason")
        job = http.get(f"{JOBS}/{second}").json()
        assert job["status"] == "queued"
        _, there = numbers(job["queued_reason"])
        assert there == 200 * MIB - held - (32 << 20)
        messages = [e["message"] for e in http.get(f"{JOBS}/{second}/events").json()["data"]]
        assert sum("waits for memory" in m for m in messages) == 1
        (shown,) = memory(http)["jobs"]
        assert shown["id"] == first and shown["planned_bytes"] == held and not shown["reported"]

        http.post(f"{JOBS}/{first}/cancel")
        for waiting in (second, third):
            wait_until(lambda: http.get(f"{JOBS}/{waiting}").json()["status"] == "succeeded",
                       timeout=20, what="the job that waited")
            assert http.get(f"{JOBS}/{waiting}").json()["queued_reason"] is None
            assert budget_of(narrow, http, waiting) <= 200 * MIB


def test_what_the_config_leaves_open_is_chosen_to_fit(narrow):
    """Twice the batch: its default plan is over the limit, and another is not."""
    with narrow.client() as http:
        job = create(http, PRESET, words="steps=3", batch_size=64).json()["id"]
        wait_until(lambda: http.get(f"{JOBS}/{job}").json()["status"] == "succeeded",
                   timeout=20, what="the job")
        assert budget_of(narrow, http, job) < 168 * MIB
        reply = create(http, PRESET, batch_size=64, micro_batch_size=64, recompute="none")
        assert reply.status_code == 409, reply.text


def test_the_real_trainer_keeps_within_what_was_admitted(tmp_path):
    """The server's plan is the trainer's, but for the data, of which it knows the file's size."""
    text = "".join(f"{i} and {i * i}\n" for i in range(3000))
    server = gptd.Server("--data-dir", tmp_path / "d", "--training-memory", "120MiB",
                         "--train-threads", 1)
    with server.client() as http:
        job = create(http, PRESET, words=text, max_iters=2, eval_interval=0).json()["id"]
        wait_until(lambda: http.get(f"{JOBS}/{job}").json()["status"] in ("succeeded", "failed"),
                   timeout=60, what="the job's end")
        done = http.get(f"{JOBS}/{job}").json()
        assert done["status"] == "succeeded", done
    server.stop()
    report = json.loads((tmp_path / "d" / "jobs" / job / "model" / "memory.json").read_text())
    assert report["planned_bytes"] <= 120 * MIB - (32 << 20)
