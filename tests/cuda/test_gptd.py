"""All of gptd on a CUDA device: with GPTD_BINARY=build/ptxsim/gptd (`make test-cuda`) on the
interpreter of its kernels, on a machine with a GPU as it is."""

import os

import pytest

from gptd import BINARY, ROOT, Server, complete, memory, run

MODEL = ROOT / "tests" / "golden" / "gpt2"
SIMULATED = "/ptxsim/" in BINARY
ASKED = {"prompt": [1, 2, 3, 4, 5], "max_tokens": 6, "temperature": 0, "logprobs": 1}
OPTIONS = ["--dtype", "f32", "--max-seqs", 2, "--max-batch-tokens", 16]

pytestmark = pytest.mark.skipif(not SIMULATED, reason="of build/ptxsim/gptd")


@pytest.fixture(scope="module")
def server():
    started = Server(*OPTIONS, model=MODEL)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def http(server):
    with server.client() as client:
        yield client


def test_the_gpu_is_the_default(server):
    assert "device cuda:0: PTX interpreter" in server.output()


def test_replies_are_the_cpus(http):
    server = Server(*OPTIONS, "--device", "cpu", model=MODEL)
    with server.client() as cpu:
        want = complete(cpu, **ASKED)["choices"][0]["logprobs"]
    server.stop()
    got = complete(http, **ASKED)["choices"][0]["logprobs"]
    assert got["tokens"] == want["tokens"]
    assert got["token_logprobs"] == pytest.approx(want["token_logprobs"], abs=1e-4)


def test_the_driver_finds_what_was_planned(http):
    entry = memory(http)["devices"][0]
    driver = entry["driver"]
    assert entry["name"] == "cuda:0"
    assert driver["unexplained_bytes"] == 0
    assert 0 < driver["start_bytes"] < driver["total_bytes"] - driver["free_bytes"] < driver["total_bytes"]
    assert f'gptd_device_memory_bytes{{kind="free"}} {driver["free_bytes"]}\n' in http.get("/metrics").text


def test_what_does_not_fit_the_gpu():
    reply = run("generate", "--model", MODEL, "--prompt", "A", "--memory-budget", "4kB")
    assert reply.returncode == 3 and "needs" in reply.stderr


def test_a_gpu_that_is_not_there():
    reply = run("generate", "--model", MODEL, "--prompt", "A", "--device", "cuda:3")
    assert reply.returncode == 1
    assert "--device cuda:3: this machine has 1 GPU, numbered from 0" in reply.stderr


def fail_after(waits):
    return {**os.environ, "PTXSIM_FAIL_AFTER": str(waits)}


def test_a_failure_ends_the_server(tmp_path):
    """In the middle of a request, which gets its error; then the process ends by itself."""
    waits, server = 40, None
    while server is None:  # loading waits, too
        try:
            server = Server(*OPTIONS, model=MODEL, env=fail_after(waits))
        except RuntimeError as error:
            assert "cuda:0 failed in a kernel: an illegal memory access" in str(error)
            waits += 10
    with server.client() as http:
        for _ in range(20):
            reply = http.post("/v1/completions", json=ASKED)
            if reply.status_code != 200:
                break
        error = reply.json()["error"]
        assert reply.status_code == 503 and error["code"] == "device_failed"
        assert "cuda:0 failed in a kernel" in error["message"]
    assert server.process.wait(30) == 5
    assert "the device has failed" in server.output()
    os.unlink(server.log.name)


def test_a_failure_ends_training(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sees a dog\n" * 60)
    config = tmp_path / "config.json"
    config.write_text('{"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 16, "batch_size": 1}')
    reply = run("train", "--config", config, "--model-name", "mine", "--input", text, "--out-dir",
                tmp_path, "--max-iters", 1000, "--save-interval", 0, "--eval-interval", 0,
                timeout=120, env=fail_after(60))
    assert reply.returncode == 5, reply
    assert "memory: cuda:0 says " in reply.stdout + reply.stderr  # it had begun
    assert "cuda:0 failed in " in reply.stderr and "an illegal memory access" in reply.stderr
