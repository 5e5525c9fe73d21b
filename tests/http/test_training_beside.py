"""What a training job does to those who are served meanwhile: the real trainer, on one thread."""

import json
import statistics
import time

import openai
import pytest

import gptd
from gptd import PATIENCE, ROOT, wait_until

TOKENS = 48
# Steps of about 50 ms: long beside a token's time, short enough for a busy machine.
SETTINGS = {"batch_size": 4, "sequence_length": 128, "max_iters": 1000000, "eval_interval": 0,
            "save_interval": 0, "dropout": 0}


@pytest.fixture
def server(tmp_path):
    started = gptd.Server("--data-dir", tmp_path / "data", "--train-threads", "1")
    yield started
    assert started.running()
    started.stop()


def token_times(http, until):
    """Seconds from token to token, as a client sees them, of requests one after another until
    `until()`; and the mean of each request, since what arrives together says nothing alone."""
    gaps, means = [], []
    while not until():
        asked = {"prompt": "ROMEO:", "max_tokens": TOKENS, "ignore_eos": True, "seed": 1,
                 "stream": True}
        with http.stream("POST", "/v1/completions", json=asked) as reply:
            at = [time.perf_counter() for _ in gptd.events(reply.iter_lines())]
        gaps += [after - before for before, after in zip(at, at[1:])]
        means.append((at[-1] - at[0]) / (len(at) - 1))
    return sorted(gaps), statistics.median(means)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def after(seconds, *more):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end and all(condition() for condition in more)


def test_inter_token_time_is_bounded(server):
    """By five times what it is without, and 1 ms: a server that waited for a training step at each
    token would be far beyond. In the same minute on the same machine; again if the machine had
    other things to do."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    jobs = client.fine_tuning.jobs
    text = (ROOT / "README.md").read_bytes()
    file = client.files.create(file=("text.txt", text), purpose="fine-tune")
    job = jobs.create(model="configs/tiny_char", training_file=file.id, extra_body=SETTINGS)
    for attempt in range(3):
        wait_until(lambda: jobs.retrieve(job.id).step >= 2, 60, "the first steps")
        pid = [int(event.message.rpartition("(process ")[2].rstrip(")"))
               for event in jobs.list_events(job.id, limit=100) if "(process " in event.message][0]
        with server.client() as http:
            begin, end = cpu_seconds(pid), time.monotonic() + 30 * PATIENCE
            trained = lambda: cpu_seconds(pid) > begin + 0.3 or time.monotonic() > end
            gaps, beside = token_times(http, after(1.5, trained))
            assert cpu_seconds(pid) > begin + 0.3, "the job did not run"
            jobs.pause(job.id)
            wait_until(lambda: "The trainer has ended" == jobs.list_events(
                job.id, limit=1).data[0].message, 60, "the pause")
            alone_gaps, alone = token_times(http, after(1.5))
        figures = {"alone_ms": alone * 1e3, "beside_ms": beside * 1e3, "ratio": beside / alone,
                   "alone_p99_ms": alone_gaps[len(alone_gaps) * 99 // 100] * 1e3,
                   "beside_p99_ms": gaps[len(gaps) * 99 // 100] * 1e3}
        print(json.dumps({key: round(value, 3) for key, value in figures.items()}))
        if beside <= 5 * alone + 0.001:
            break
        jobs.resume(job.id)
    else:
        pytest.fail(f"training slows serving: {figures}")
    assert jobs.cancel(job.id).status == "cancelled"


def test_sigterm_with_a_running_job(tmp_path):
    """It writes a checkpoint and stops, and goes on from there when the server is back: no step is
    lost, none is done twice."""
    folder = tmp_path / "data"
    options = ("--data-dir", folder, "--train-threads", 1)
    first = gptd.Server(*options)
    client = openai.OpenAI(base_url=first.url + "/v1", api_key="none", max_retries=0)
    file = client.files.create(file=("text.txt", (ROOT / "README.md").read_bytes()),
                               purpose="fine-tune")
    n = 150
    job = client.fine_tuning.jobs.create(
        model="configs/tiny_char", training_file=file.id,
        extra_body={**SETTINGS, "batch_size": 1, "sequence_length": 64, "max_iters": n})
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).step >= 2, 60, "the first steps")
    first.stop()
    model = folder / "jobs" / job.id / "model"
    (checkpoint,) = (model / "checkpoints").glob("step-*")
    stopped_at = int(checkpoint.name.removeprefix("step-"))
    assert (checkpoint / "manifest.json").exists() and 2 <= stopped_at < n
    second = gptd.Server(*options)
    client = openai.OpenAI(base_url=second.url + "/v1", api_key="none", max_retries=0)
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded", 60,
               "the end")
    second.stop()
    steps = [json.loads(line)["step"] for line in (model / "metrics.jsonl").open()]
    assert steps == list(range(1, n + 1))
