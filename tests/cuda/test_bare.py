"""What scripts/gpu_check.sh builds of the tests on a machine without our libraries compiles with scripts/bare in
their place."""

import os
import subprocess

from gptd import ROOT

FLAGS = ["-std=c17", "-D_GNU_SOURCE", "-fsyntax-only", "-Werror=implicit-function-declaration",
         "-Iscripts/bare", "-I."]


def test_the_cuda_tests_need_no_library():
    sources = [*(ROOT / "tests" / "cuda").glob("cases_*.c"),
               *(ROOT / "tests" / "cuda" / name for name in ("cuda_side.c", "test_cuda_ops.c", "test_cuda_model.c"))]
    assert len(sources) > 6
    reply = subprocess.run([os.environ.get("CC", "cc"), *FLAGS, *sources], cwd=ROOT, text=True, capture_output=True)
    assert reply.returncode == 0, reply.stderr
