"""gptd with CUDA (build/ptxsim/gptd_gpu: the same objects, linked for GPUs) where no driver is: it says
so when a GPU is asked for, and serves on the CPU."""

import ctypes
import pathlib

import pytest

import gptd

GPU_BINARY = pathlib.Path(gptd.BINARY).with_name("gptd_gpu")


def driver():
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


@pytest.fixture(autouse=True)
def with_cuda(monkeypatch):
    if not (gptd.ROOT / GPU_BINARY).exists() or driver():
        pytest.skip("of build/ptxsim/gptd_gpu, where no driver is")
    monkeypatch.setattr(gptd, "BINARY", str(GPU_BINARY))


@pytest.mark.parametrize("device", ["cuda:0", "cuda:7"])
def test_a_gpu_that_is_asked_for(device):
    reply = gptd.run("serve", "--model", gptd.MODEL, "--port", 0, "--device", device)
    assert reply.returncode == 1
    assert f"--device {device}: there is no usable NVIDIA driver here" in reply.stderr
    assert "use --device cpu" in reply.stderr


def test_the_cpu_serves():
    server = gptd.Server()
    with server.client() as http:
        assert gptd.complete(http, prompt="ROMEO:", max_tokens=3)["usage"]["completion_tokens"] == 3
        assert gptd.memory(http)["devices"][0]["name"] == "cpu"
    server.stop()
