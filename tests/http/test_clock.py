"""The wall clock jumps by hours, back and forth, at each look at it: nobody waits by it."""

import os
import shutil
import signal
import socket
import subprocess
import time

import openai
import pytest

import gptd
from gptd import PATIENCE, ROOT, Server, complete, joined, stream, text_of, wait_until

pytestmark = [
    pytest.mark.skipif(gptd.SANITIZED, reason="a sanitizer's runtime must be loaded first"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
]
HOUR = 3600
LONG = {"prompt": "A", "max_tokens": 240, "ignore_eos": True, "temperature": 0}
SETTINGS = {"max_iters": 4, "batch_size": 1, "sequence_length": 32,
            "save_interval": 2, "eval_interval": 2, "eval_iters": 1}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("clock") / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", path,
                    ROOT / "tests" / "faults" / "clock.c"], check=True)
    return path


@pytest.fixture
def serve(library):
    started = []

    def start(*options):
        started.append(Server(*options, env={**os.environ, "LD_PRELOAD": str(library)}))
        return started[-1]
    yield start
    for server in started:
        server.kill()


def test_it_serves_and_drains(serve):
    server = serve("--max-seqs", 1, "--request-timeout", 60, "--drain-timeout", 60,
                   "--stall-timeout", 1, "--exit-on-stall", "--idle-timeout", 30)
    with server.client() as http:
        expected = text_of(http, **LONG)
        times = [complete(http, prompt="A", max_tokens=1)["created"] for _ in range(6)]
        assert max(times) - min(times) > HOUR, "the clock does not jump"
        # One runs, the others wait their turn.
        assert joined(stream(http, **{**LONG, "prompt": ["A"] * 4}), index=3) == expected
        end = time.monotonic() + 2.5  # of the watchdog's patience, and of the memory's samples
        while time.monotonic() < end:
            assert http.get("/health").status_code == 200, server.output()
            assert http.get("/v1/memory").status_code == 200
            time.sleep(0.1)
        with http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as reply:
            lines = reply.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert joined(gptd.events([first, *lines])) == expected
    server.check_end()


def test_deadlines_are_kept(serve):
    """A request's, and that of a client which does not send what it announced."""
    server = serve("--max-seqs", 8, "--max-n", 8, "--kv-cache", "64MB", "--request-timeout", 1,
                   "--body-timeout", 1)
    with server.client() as http:
        begin = time.monotonic()
        reply = http.post("/v1/completions", json={**LONG, "prompt": ["A"] * 60, "n": 8})
        assert reply.status_code == 504, reply.text
        assert 0.9 < time.monotonic() - begin < 5 * PATIENCE
        assert text_of(http, prompt="A", max_tokens=2)
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10 * PATIENCE) as slow:
        slow.sendall(b"POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{")
        slow.recv(1000)  # 408, or the end
    assert 0.9 < time.monotonic() - begin < 5 * PATIENCE
    server.stop()


def test_a_job_trains(serve, tmp_path):
    """The trainer's clock jumps too, and so do the times of what both write."""
    server = serve("--data-dir", tmp_path / "data", "--train-threads", 1)
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    jobs = client.fine_tuning.jobs
    file = client.files.create(file=("text.txt", (ROOT / "README.md").read_bytes()),
                               purpose="fine-tune")
    job = jobs.create(model="configs/tiny_char", training_file=file.id, extra_body=SETTINGS)
    ended = ("succeeded", "failed", "cancelled")
    wait_until(lambda: jobs.retrieve(job.id).status in ended, 60, "the job's end")
    job = jobs.retrieve(job.id)
    assert job.status == "succeeded", job
    assert abs(job.finished_at - job.created_at) > HOUR or abs(job.created_at - time.time()) > HOUR
    server.stop()
