"""The `cuda` target of the Dockerfile, where a toolkit is: built on an image that stands in for
NVIDIA's and holds this machine's toolkit as that would, and run without a driver. What it does not
show is that NVIDIA's image has what is asked of it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from containers import STATE

TOOLKIT = Path("/usr/local/cuda")
HEADER = "include/crt/math_functions.h"


def toolkit_version():
    if not (TOOLKIT / "bin/nvcc").exists():
        pytest.skip(f"no CUDA toolkit in {TOOLKIT}")
    said = subprocess.run([TOOLKIT / "bin/nvcc", "--version"], capture_output=True, text=True)
    return re.search(r"release (\d+\.\d+)", said.stdout).group(1)


def copy_toolkit(folder):
    """What compiling and linking need. cuBLAS, which is opened at run time, is an empty library:
    half a gigabyte less for each stage that it goes through."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("bin", "nvvm", "include"):
        shutil.copytree(TOOLKIT / name, folder / name, symlinks=True)
    (folder / "lib").mkdir()
    (folder / "lib64").symlink_to("lib")
    shutil.copy(TOOLKIT / "lib64/libcudart_static.a", folder / "lib")
    cublas, = (path.name for path in (TOOLKIT / "lib64").glob("libcublasLt.so.[0-9][0-9]"))
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", folder / "lib" / cublas],
                   check=True)
    # CUDA 12, the Dockerfile's default, knows nothing of glibc's functions of the same names.
    text = (folder / HEADER).read_text()
    (folder / HEADER).write_text(text.replace(" __NV_IEC_60559_FUNCS_EXCEPTION_SPECIFIER;", ";"))
    return cublas


@pytest.fixture(scope="module")
def cuda(engine, base):
    """(the image, cuBLAS' file)"""
    version = toolkit_version()
    cublas = copy_toolkit(STATE / "toolkit")
    container = engine.run("buildah", "from", "scratch").stdout.strip()
    engine.run("buildah", "add", "-q", container, STATE / "toolkit", f"/usr/local/cuda-{version}")
    engine.run("buildah", "commit", "-q", "--format", "docker", container, "localhost/toolkit:test")
    engine.run("buildah", "rm", container)
    shutil.rmtree(STATE / "toolkit")
    return engine.build("cuda", "gptd-cuda:test", "--build-arg", f"CUDA={version}",
                        "--build-arg", "CUDA_IMAGE=toolkit:test", "--build-arg", "CUDA_ARCHS=80",
                        "--build-arg", "VERSION=1.2.3-test", timeout=800), cublas


def run(engine, image, *arguments, options=()):
    return engine.podman("run", "--rm", "--pull", "never", "--network", "none", "--read-only",
                         "--cap-drop", "ALL", *options, image, *arguments, check=False)


def test_the_program_runs_without_a_driver(engine, cuda):
    image, cublas = cuda
    assert run(engine, image, "--version").stdout.startswith("gptd 1.2.3-test\n")
    asked = ("generate", "--model", "/usr/share/gptd/models/shakespeare", "--prompt", "ROMEO:",
             "--max-new-tokens", "4")
    for device in ((), ("--device", "cuda:0")):  # the image asks for it by itself
        ended = run(engine, image, *asked, *device)
        assert ended.returncode == 1 and "cuda:0" in ended.stderr, ended
    ended = run(engine, image, *asked, "--device", "cpu")
    assert ended.returncode == 0 and ended.stdout.strip(), ended
    libraries = run(engine, image, "/usr/local/lib", options=("--entrypoint", "ls")).stdout.split()
    assert cublas in libraries


def test_what_the_image_says_of_itself(engine, cuda):
    config = engine.inspect(cuda[0])["Config"]
    assert config["User"] == "10001:10001" and config["Entrypoint"] == ["gptd"]
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            "GPTD_DEVICE=cuda:0"} <= set(config["Env"])
