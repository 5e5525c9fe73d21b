"""Files and fine-tuning jobs over HTTP, with the official client and with the server killed under
them. The trainer is tests/fake_trainer.py, which obeys the training data's first line."""

import contextlib
import json
import os
import resource
import signal
import time

import openai
import pytest
from openapi_spec_validator import validate

import gptd
from gptd import PATIENCE, ROOT, check_error, refused, wait_until

TRAINER = ROOT / "tests" / "fake_trainer.py"
PRESET = "configs/tiny_char"
JOBS = "/v1/fine_tuning/jobs"


def start(folder, *arguments, **popen):
    return gptd.Server("--data-dir", folder, "--trainer", TRAINER, *arguments, **popen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "gptd-data"


@pytest.fixture(scope="module")
def server(folder):
    started = start(folder, "--max-upload", "1MB")
    yield started
    crashed = not started.running()
    started.stop()
    assert not crashed


def upload(client, text, name="train.txt"):
    return client.files.create(file=(name, text.encode()), purpose="fine-tune").id


def submit(client, text, **more):
    return client.fine_tuning.jobs.create(model=PRESET, training_file=upload(client, text), **more)


def finished(client, job, timeout=30):
    end = time.monotonic() + timeout * PATIENCE
    while time.monotonic() < end:
        job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def wait_status(http, job, *states):
    wait_until(lambda: http.get(f"{JOBS}/{job.id}").json()["status"] in states, 30,
               f"{job.id} in {states}")
    return http.get(f"{JOBS}/{job.id}").json()


def log(folder, job, name="stdout.log"):
    return (folder / "jobs" / job.id / name).read_text()


def runs(folder, job):
    """What the trainer said of each of its starts."""
    return [json.loads(line) for line in log(folder, job).splitlines() if line.startswith("{")]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def trainer_of(client, job):
    """The process id, from the event that says that it was started."""
    for event in client.fine_tuning.jobs.list_events(job.id, limit=100):
        if "(process " in event.message:
            return int(event.message.rpartition("(process ")[2].rstrip(")"))
    return None


# ---- files ----

def test_nothing_is_made_before_it_is_needed(tmp_path):
    server = start(tmp_path / "data")
    with server.client() as http:
        assert http.get("/v1/files").json() == {"object": "list", "data": [], "has_more": False}
        assert http.get(JOBS).json()["data"] == []
    server.stop()
    assert not (tmp_path / "data").exists()


def test_file_life(client, folder):
    text = "é lines\n" * 1000
    file = client.files.create(file=("../../evil name.jsonl", text.encode()), purpose="fine-tune")
    assert file.bytes == len(text.encode()) and file.filename == "evil name.jsonl"
    assert file.object == "file" and file.purpose == "fine-tune"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == text.encode()
    assert file.id in [f.id for f in client.files.list()]
    assert (folder / "files" / file.id / "content.jsonl").read_text() == text
    assert client.files.delete(file.id).deleted
    assert not (folder / "files" / file.id).exists()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_files_in_pages(client):
    ids = [upload(client, f"text {i}") for i in range(5)]
    seen = [file.id for file in client.files.list(limit=2)]
    assert set(ids) <= set(seen) and len(seen) == len(set(seen))
    assert [f.id for f in client.files.list(order="asc")] == seen[::-1]
    assert not client.files.list(purpose="batch").data
    for file in ids:
        client.files.delete(file)


def post_parts(http, parts, boundary="xyz", type="multipart/form-data; boundary=xyz"):
    body = b"".join(b"--" + boundary.encode() + b"\r\nContent-Disposition: form-data; " + head
                    + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    body += b"--" + boundary.encode() + b"--\r\n"
    return http.post("/v1/files", content=body, headers={"Content-Type": type})


def stored(folder):
    """The names in the folder of files, which the first upload makes."""
    return sorted(os.listdir(folder / "files")) if (folder / "files").exists() else []


FILE = (b'name="file"; filename="a.txt"', b"hello")
PURPOSE = (b'name="purpose"', b"fine-tune")


@pytest.mark.parametrize("parts, param", [
    ([FILE], "purpose"), ([PURPOSE], "file"), ([FILE, (b'name="purpose"', b"nonsense")], "purpose"),
    ([FILE, PURPOSE, (b'name="other"', b"x")], "other"),
    ([(b'name="file"; filename="a.txt"', b""), PURPOSE], "file"),
    ([(b'name="file"', b"hello"), PURPOSE], "file"), ([FILE, FILE, PURPOSE], "file"),
    ([FILE, (b'name="purpose"', b"x" * 1000)], "purpose"),
])
def test_bad_uploads(http, folder, parts, param):
    before = stored(folder)
    reply = post_parts(http, parts)
    assert reply.status_code == 400, reply.text
    assert check_error(reply)["param"] == param
    assert stored(folder) == before


def test_uploads_of_another_type(http):
    for type in ("application/json", "text/plain", "multipart/form-data"):
        reply = http.post("/v1/files", content=b"{}", headers={"Content-Type": type})
        assert reply.status_code == 415, reply.text


def test_upload_limit(http, folder):
    before = stored(folder)
    fits = post_parts(http, [(FILE[0], b"x" * 1000000), PURPOSE])
    assert fits.status_code == 200
    assert http.delete("/v1/files/" + fits.json()["id"]).status_code == 200
    for size in (1000001, 1040000, 2000000):
        reply = post_parts(http, [(FILE[0], b"x" * size), PURPOSE])
        assert reply.status_code == 413, size
    assert stored(folder) == before


def test_no_such_file(http):
    for name in ("file-abc", "file-" + "a" * 24, "..", "%2e%2e", "x%2f..%2fy", "file-" + "a" * 300):
        for url in (f"/v1/files/{name}", f"/v1/files/{name}/content"):
            assert http.get(url).status_code == 404, url
        assert http.delete(f"/v1/files/{name}").status_code in (404, 405)


# ---- jobs ----

def test_job_succeeds(client, http, folder):
    job = submit(client, "steps=12 save=4\ntext", suffix="first", seed=7,
                 hyperparameters={"batch_size": 3, "learning_rate_multiplier": 0.5,
                                  "n_epochs": 2},
                 metadata={"who": "me"}, extra_body={"weight_decay": 0.25, "lr_schedule": "linear",
                                                     "freeze_embeddings": False})
    assert job.object == "fine_tuning.job" and job.status in ("queued", "running")
    job = finished(client, job)
    assert job.status == "succeeded", job
    assert job.fine_tuned_model == "first" and job.finished_at >= job.created_at
    assert job.seed == 7 and job.hyperparameters.batch_size == 3 and job.metadata == {"who": "me"}
    run, = runs(folder, job)
    flags = run["argv"]
    assert "--seed=7" in flags and "--batch-size=3" in flags
    assert "--epochs=2" in flags and "--weight-decay=0.25" in flags
    assert "--lr-schedule=linear" in flags and "--no-freeze-embeddings" in flags
    assert f"--config={ROOT}/configs/tiny_char.json" in flags
    rate = [float(flag.partition("=")[2]) for flag in flags if flag.startswith("--learning-rate")]
    assert rate == [0.0005]  # half of the preset's
    assert run["nice"] >= 10 and run["batch"] and run["group"]
    assert json.loads(log(folder, job, "job.json")) == http.get(f"{JOBS}/{job.id}").json()
    assert len(log(folder, job, "metrics.jsonl").splitlines()) == 12


def test_when_a_running_job_will_be_done(client, http):
    job = submit(client, "steps=40 pause=0.05 config=100")
    assert job.estimated_finish is None
    wait_until(lambda: http.get(f"{JOBS}/{job.id}").json()["estimated_finish"], what="an estimate")
    begun = http.get(f"{JOBS}/{job.id}").json()
    assert begun["status"] == "running" and begun["estimated_finish"] >= begun["started_at"]
    done = finished(client, job)
    assert done.estimated_finish is None
    assert abs(begun["estimated_finish"] - done.finished_at) < 5 * PATIENCE
    # The same file says that the run is over before its warm-up is.
    events = http.get(f"{JOBS}/{job.id}/events").json()["data"]
    assert [event["message"] for event in events if event["level"] == "warn"] == [
        "warmup_iters is 100 and the run has 40 steps, so that learning_rate is not reached before "
        "the last: choose fewer, or a share of the steps such as 0.02"]


def test_events_and_checkpoints(client):
    job = finished(client, submit(client, "steps=12 save=4\ntext"))
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))  # over all pages
    assert len({event.id for event in events}) == len(events) >= 6
    messages = [event.message for event in events][::-1]
    assert messages[0].startswith("Created") and "started" in messages[1]
    assert messages[-1] == f"New fine-tuned model created: {job.fine_tuned_model}"
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == sorted(steps, reverse=True) and {4, 8, 12} <= set(steps)
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [c.step_number for c in checkpoints] == [12, 8, 4]
    assert checkpoints[0].metrics.train_loss == pytest.approx(4 / 12)
    assert checkpoints[0].metrics.valid_loss == pytest.approx(4.5 / 12)


# ---- streams of events ----

def follow(http, job, **query):
    return http.stream("GET", f"{JOBS}/{job.id}/events", params={"stream": "true", **query})


def streamed(reply):
    """The events of a stream that must end well."""
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    return list(gptd.events(reply.iter_lines()))


def test_events_come_as_they_happen(client, http):
    job = submit(client, "steps=40 pause=0.05 save=5\ntext")
    seen = []
    with follow(http, job) as reply:
        for event in gptd.events(reply.iter_lines()):
            seen.append(event)
            if event["data"] and event["data"]["step"] < 20:  # not all at its end
                assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    assert sum(event["type"] == "metrics" for event in seen) >= 8
    listed = [event.to_dict() for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert seen == listed[::-1]
    assert seen[-1]["message"].startswith("New fine-tuned model")
    with follow(http, job) as reply:  # over already: all of it, at once
        assert streamed(reply) == seen
    with follow(http, job, after=seen[4]["id"]) as reply:
        assert streamed(reply) == seen[5:]
    with follow(http, job, after=seen[-1]["id"]) as reply:
        assert streamed(reply) == []
    head = http.head(f"{JOBS}/{job.id}/events", params={"stream": "true"})
    assert head.status_code == 200 and head.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize("query, param", [
    ({"stream": "yes"}, "stream"), ({"stream": "true", "limit": 3}, "limit"),
    ({"stream": "true", "after": "ftevent-x"}, "after"),
    ({"stream": "true", "after": "ftevent-x-0"}, "after"),
    ({"stream": "true", "after": "ftevent-x-99999999999999999999"}, "after"),
    ({"stream": "true", "order": "asc"}, "order"),
])
def test_bad_streams(client, http, query, param):
    job = finished(client, submit(client, "steps=1\ntext"))
    reply = http.get(f"{JOBS}/{job.id}/events", params=query)
    assert reply.status_code == 400 and check_error(reply)["param"] == param
    assert http.get(f"{JOBS}/{job.id}/checkpoints?stream=true").status_code == 400
    assert http.get(f"{JOBS}/ftjob-none/events?stream=true").status_code == 404


def test_a_stream_spans_pauses_and_ends_with_the_job(client, http):
    job = submit(client, "steps=400 pause=0.02\ntext")
    messages = []
    with follow(http, job) as reply:
        for event in gptd.events(reply.iter_lines()):
            messages.append(event["message"])
            if event["message"].startswith("Step 5,"):
                client.fine_tuning.jobs.pause(job.id)
            if event["message"] == "The trainer has ended" and "The job was resumed" not in str(
                    messages):
                client.fine_tuning.jobs.resume(job.id)
            if "resumed from its last checkpoint" in event["message"]:
                client.fine_tuning.jobs.cancel(job.id)
    assert "The job was paused" in messages and "The job was cancelled" in messages
    assert messages[-1] == "The trainer has ended"


def test_many_listeners(client, http, server, model):
    """They all get everything; completions go on; those who leave are noticed."""
    job = submit(client, "steps=60 pause=0.05 save=10\ntext")
    waiting = submit(client, "steps=1\ntext")
    before = gone(http)
    with contextlib.ExitStack() as stack:
        leaving = [stack.enter_context(server.client()) for _ in range(30)]
        replies = [own.send(own.build_request("GET", f"{JOBS}/{waiting.id}/events?stream=true"),
                            stream=True) for own in leaving]
        staying = [stack.enter_context(follow(stack.enter_context(server.client()), job))
                   for _ in range(30)]
        for reply, own in zip(replies, leaving):
            reply.close()
            own.close()
        wait_until(lambda: gone(http) == before + 30, 10, "the end of who left")
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
        assert gptd.text_of(http, model=model, prompt="ROMEO:", max_tokens=8)
        seen = [streamed(reply) for reply in staying]
    assert len(seen[0]) >= 8 and all(other == seen[0] for other in seen)
    assert finished(client, waiting).status == "succeeded"


def gone(http):
    """Streams of events whose clients left before the end."""
    found = [line for line in http.get("/metrics").text.splitlines()
             if "jobs/{id}/events" in line and 'status="499"' in line]
    return int(found[0].split()[-1]) if found else 0


def test_a_quiet_stream_is_kept_alive_until_the_server_ends(tmp_path):
    server = start(tmp_path / "data", "--idle-timeout", "2")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    job = submit(client, "steps=9 die=hang@3\ntext")
    lines, begin = [], time.monotonic()
    with server.client() as http, follow(http, job) as reply:
        for line in reply.iter_lines():
            lines.append(line)
            if lines.count(":") == 4:  # longer than the idle timeout
                break
        assert time.monotonic() - begin > 2
        job = submit(client, "steps=9\ntext")
    with server.client() as http, follow(http, job) as reply:
        end = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
        assert time.monotonic() - end < 5 * PATIENCE  # the hanging trainer takes longer
    assert lines[-1] == "data: [DONE]"
    assert "shutting down" in json.loads(lines[-2].removeprefix("data: "))["error"]["message"]
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30 * PATIENCE)


@pytest.mark.parametrize("die, code, text", [
    ("exit@3", "trainer_failed", "the loss is not finite at step 7"),
    ("nofit@1", "does_not_fit", "needs 9 GiB, the budget is 1 GiB"),
    ("abort@3", "killed", "SIGABRT"), ("segv@3", "killed", "SIGSEGV"),
    ("kill@3", "killed", "SIGKILL (out of memory, or by an operator); it has no"),
])
def test_a_failing_job_touches_nothing_else(client, http, model, die, code, text):
    asked = {"model": model, "prompt": "ROMEO:", "max_tokens": 8, "temperature": 0}
    before = gptd.text_of(http, **asked)
    job = finished(client, submit(client, f"steps=9 die={die}\ntext"))
    assert job.status == "failed" and job.error.code == code and text in job.error.message
    assert gptd.text_of(http, **asked) == before
    assert finished(client, submit(client, "steps=1\ntext")).status == "succeeded"


def test_jobs_queue_and_cancel(client, http, folder):
    first = submit(client, "steps=1000 pause=0.05\ntext")
    second = submit(client, "steps=2\ntext")
    third = submit(client, "steps=2\ntext")
    wait_status(http, first, "running")
    assert client.fine_tuning.jobs.retrieve(second.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(third.id).status == "cancelled"
    pid = trainer_of(client, first)
    assert client.fine_tuning.jobs.cancel(first.id).status == "cancelled"
    assert finished(client, second).status == "succeeded"
    assert not alive(pid)
    assert http.get(f"{JOBS}/{first.id}").json()["status"] == "cancelled"
    assert not (folder / "jobs" / third.id / "stdout.log").exists()
    for job in (first, second):
        reply = http.post(f"{JOBS}/{job.id}/cancel")
        assert reply.status_code == 400 and "cannot be cancelled" in check_error(reply)["message"]


def test_pause_and_resume(client, http, folder):
    job = submit(client, "steps=60 pause=0.03\ntext")
    wait_until(lambda: http.get(f"{JOBS}/{job.id}").json()["step"] >= 7, 30)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    pid = trainer_of(client, job)
    wait_until(lambda: not alive(pid), 30)
    assert http.get(f"{JOBS}/{job.id}").json()["status"] == "paused"
    client.fine_tuning.jobs.resume(job.id)
    assert finished(client, job).status == "succeeded"
    first, second = runs(folder, job)
    assert first["begin"] == 0 and second["begin"] >= 7


def test_a_failed_job_resumes(client, http, folder):
    job = finished(client, submit(client, "steps=12 die=kill@8\ntext"))
    assert job.status == "failed"
    assert http.post(f"{JOBS}/{job.id}/resume", json={}).status_code == 200
    job = finished(client, job)
    assert job.status == "succeeded" and job.error is None
    assert [run["begin"] for run in runs(folder, job)] == [0, 5]


def test_a_job_that_failed_too_early_says_why_it_cannot_resume(client, http):
    job = finished(client, submit(client, "steps=12 die=kill@2\ntext"))
    assert "no checkpoint to go on from" in job.error.message
    assert "it has no checkpoint" in refused(http, {}, path=f"{JOBS}/{job.id}/resume")["message"]


def test_an_operator_stops_the_trainer(client, http, folder):
    """It leaves a checkpoint and the model so far, but the job is not done."""
    job = submit(client, "steps=60 pause=0.03\ntext")
    wait_until(lambda: http.get(f"{JOBS}/{job.id}").json()["step"] >= 3, 30)
    os.kill(trainer_of(client, job), signal.SIGTERM)
    wait_status(http, job, "paused")
    client.fine_tuning.jobs.resume(job.id)
    assert finished(client, job).status == "succeeded"
    assert runs(folder, job)[1]["begin"] >= 3


def test_deleting_the_file_leaves_the_job(client, http):
    job = submit(client, "steps=40 pause=0.03\ntext")
    client.files.delete(job.training_file)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    client.fine_tuning.jobs.resume(job.id)
    assert finished(client, job).status == "succeeded"


@pytest.mark.parametrize("body, param", [
    ({"max_iter": 5}, "max_iter"), ({"max_iters": 0}, "max_iters"),
    ({"max_iters": 2.5}, "max_iters"), ({"learning_rate": "x"}, "learning_rate"),
    ({"lr_schedule": "zigzag"}, "lr_schedule"), ({"suffix": "a/b"}, "suffix"),
    ({"suffix": "..", }, "suffix"), ({"seed": -1}, "seed"),
    ({"hyperparameters": {"epochs": 3}}, "hyperparameters.epochs"),
    ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size"),
    ({"hyperparameters": {}, "method": {"type": "supervised"}}, "method"),
    ({"hyperparameters": {"batch_size": 2}, "batch_size": 2}, "batch_size"),
    ({"method": {"type": "dpo"}}, "method.type"), ({"training_file": "file-none"}, "training_file"),
    ({"training_file": "../../etc/passwd"}, "training_file"),
    ({"validation_file": "file-none"}, "validation_file"), ({"integrations": [{}]}, "integrations"),
    ({"dtype": "f16"}, "dtype"), ({"freeze_layers": 5}, "freeze_layers"),
    ({"sequence_length": 129}, "sequence_length"),
    ({"model": "shakespeare", "sequence_length": 257}, "sequence_length"),
    ({"min_lr": 5, "learning_rate": 1}, "min_lr"), ({"metadata": {"a": 1}}, "metadata"),
])
def test_bad_jobs(client, http, body, param):
    body = {"model": PRESET, "training_file": upload(client, "text"), **body}
    assert refused(http, body, path=JOBS)["param"] == param


@pytest.mark.parametrize("model", ["nobody", "configs/none", "configs/../configs/tiny", "configs/",
                                   "configs/.", "models/shakespeare", "/etc/passwd"])
def test_no_such_model(client, http, model):
    body = {"model": model, "training_file": upload(client, "text")}
    assert refused(http, body, 404, JOBS)["param"] == "model"


def test_names_are_unique(client, http):
    job = finished(client, submit(client, "steps=1\ntext", suffix="twice"))
    body = {"model": PRESET, "training_file": upload(client, "x"), "suffix": "twice"}
    assert refused(http, body, path=JOBS)["param"] == "suffix"
    assert job.fine_tuned_model == "twice"


def test_fine_tuning_what_is_served(client, folder, model):
    file = upload(client, "steps=1\ntext")
    job = client.fine_tuning.jobs.create(model=model, training_file=file,
                                         hyperparameters={"learning_rate_multiplier": 2})
    assert finished(client, job).status == "succeeded"
    flags = runs(folder, job)[0]["argv"]
    assert f"--init-from={ROOT}/models/shakespeare" in flags
    rate = [float(flag.partition("=")[2]) for flag in flags if flag.startswith("--learning-rate")]
    assert rate == [0.0002]  # twice what fine-tuning begins with


def test_lists_and_unknown_ids(client, http):
    for _ in range(4):
        client.fine_tuning.jobs.cancel(submit(client, "steps=1000").id)
    jobs = [job.id for job in client.fine_tuning.jobs.list(limit=3)]
    assert len(jobs) == len(set(jobs)) > 3
    assert http.get(JOBS, params={"limit": 0}).status_code == 400
    assert http.get(JOBS, params={"before": 1}).status_code == 400
    assert http.get(JOBS, params={"after": "ftjob-none"}).status_code == 400
    assert http.get(JOBS + "/ftjob-none").status_code == 404
    assert http.post(JOBS + "/ftjob-none/cancel").status_code == 404
    assert http.get(JOBS + "/ftjob-none/events").status_code == 404
    assert http.post(f"{JOBS}/{jobs[0]}/cancel", json={"force": True}).status_code == 400
    reply = http.put(f"/v1/files/{jobs[0]}")
    assert reply.status_code == 405 and reply.headers["allow"] == "GET, HEAD, DELETE"


def test_described(http):
    spec = http.get("/openapi.json").json()
    validate(spec)
    body = spec["paths"][JOBS]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"max_iters", "learning_rate", "suffix", "method"} <= set(body["properties"])
    assert set(spec["paths"]["/v1/files/{id}"]) == {"get", "delete"}


# ---- the server's end ----

def test_shutdown_and_restart(tmp_path):
    folder = tmp_path / "data"
    server = start(folder)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    job = submit(client, "steps=80 pause=0.03 save=1000\ntext")
    waiting = submit(client, "steps=1\ntext")
    with server.client() as http:
        wait_until(lambda: http.get(f"{JOBS}/{job.id}").json()["step"] >= 5, 30)
    pid = trainer_of(client, job)
    server.stop()
    assert not alive(pid)
    assert json.loads(log(folder, job, "job.json"))["status"] == "running"
    server = start(folder)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    assert finished(client, job).status == "succeeded"
    assert finished(client, waiting).status == "succeeded"
    first, second = runs(folder, job)
    assert second["begin"] >= 5  # SIGTERM made a checkpoint
    assert any("restarted" in e.message for e in client.fine_tuning.jobs.list_events(job.id))
    server.stop()


def test_the_server_is_killed(tmp_path):
    folder = tmp_path / "data"
    server = start(folder)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    job = submit(client, "steps=60 pause=0.03\ntext")
    with server.client() as http:
        wait_until(lambda: http.get(f"{JOBS}/{job.id}").json()["step"] >= 7, 30)
    pid = trainer_of(client, job)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not alive(pid), 10, "the orphan's end")
    server = start(folder)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    assert finished(client, job).status == "succeeded"
    assert [run["begin"] for run in runs(folder, job)][1] >= 5
    server.stop()


def test_a_trainer_that_does_not_end(tmp_path):
    """It is killed when patience ends: here the server's own, at its shutdown."""
    folder = tmp_path / "data"
    server = start(folder, "--drain-timeout", "1")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    job = submit(client, "steps=9 die=hang@3\ntext")
    with server.client() as http:
        wait_until(lambda: http.get(f"{JOBS}/{job.id}").json()["step"] >= 2, 30)
    pid = trainer_of(client, job)
    server.stop()
    assert not alive(pid)


def test_two_servers_and_one_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    one, two = start(folder), start(folder)
    with two.client() as http:
        reply = post_parts(http, [FILE, PURPOSE])
        assert reply.status_code == 503 and "another gptd" in check_error(reply)["message"]
    one.stop()
    with two.client() as http:
        assert post_parts(http, [FILE, PURPOSE]).status_code == 200
    two.stop()


def test_a_file_that_may_not_grow_so_large_ends_no_server(tmp_path):
    """RLIMIT_FSIZE, whose signal would end the process."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
    server = start(tmp_path / "data", preexec_fn=limit)
    with server.client() as http:
        reply = post_parts(http, [(FILE[0], b"x" * 200000), PURPOSE])
        assert reply.status_code == 507 and check_error(reply)["code"] == "disk_full"
        assert os.listdir(tmp_path / "data" / "files") == []
        assert post_parts(http, [FILE, PURPOSE]).status_code == 200
    server.stop()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    server = start(tmp_path / "file" / "data")
    with server.client() as http:
        assert http.get("/v1/files").status_code in (200, 503)
        reply = post_parts(http, [FILE, PURPOSE])
        assert reply.status_code == 503 and "--data-dir" in check_error(reply)["message"]
    server.stop()


def test_a_trainer_that_cannot_run(tmp_path):
    server = gptd.Server("--data-dir", tmp_path / "data", "--trainer", tmp_path / "none")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    job = finished(client, submit(client, "text"))
    assert job.status == "failed" and "No such file" in job.error.message
    server.stop()


def test_the_servers_variables_are_not_its_trainers(tmp_path, monkeypatch):
    """GPTD_DTYPE says what is served with; a trainer that took it would train with it."""
    trainer = tmp_path / "trainer.sh"
    trainer.write_text(f'#!/bin/sh\nenv >{tmp_path}/variables\nexec {TRAINER} "$@"\n')
    trainer.chmod(0o755)
    monkeypatch.setenv("GPTD_MAX_SEQS", "3")
    monkeypatch.setenv("GPTD_TRAINER", str(trainer))
    monkeypatch.setenv("OTHER_VARIABLE", "stays")
    server = gptd.Server("--data-dir", tmp_path / "data")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    assert finished(client, submit(client, "steps=1")).status == "succeeded"
    server.stop()
    variables = (tmp_path / "variables").read_text()
    assert "OTHER_VARIABLE=stays" in variables and "GPTD_" not in variables
