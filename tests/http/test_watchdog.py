"""An engine that hangs in the middle of its work: /health says so, --exit-on-stall ends gptd."""

import os
import shutil
import subprocess
import threading
import time

import pytest

import gptd
from gptd import PATIENCE, ROOT, Server, text_of, wait_until

pytestmark = [
    pytest.mark.skipif(gptd.SANITIZED, reason="a sanitizer's runtime must be loaded first"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
]
ASKED = {"prompt": "ROMEO:", "max_tokens": 5, "temperature": 0}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("stall") / "stall.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", path,
                    ROOT / "tests" / "stall_engine.c"], check=True)
    return path


@pytest.fixture
def stall(tmp_path):
    """The file that stalls."""
    return tmp_path / "stall"


@pytest.fixture
def serve(library, stall):
    """Starts a server with these options; one that a failed test leaves behind is killed."""
    servers = []

    def start(*options):
        servers.append(Server("--stall-timeout", 1, *options, env={
            **os.environ, "LD_PRELOAD": str(library), "STALL_ENGINE": str(stall)}))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def ask_in_background(server):
    """The request that the engine hangs on; what becomes of it is in the list, once it is over."""
    outcome = []

    def ask():
        try:
            with server.client() as http:
                outcome.append(text_of(http, **ASKED))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, outcome


def test_exit_on_stall(serve, stall):
    server = serve("--exit-on-stall")
    with server.client() as http:
        assert text_of(http, **ASKED)
    stall.touch()
    begin = time.monotonic()
    thread, outcome = ask_in_background(server)
    assert server.process.wait(30 * PATIENCE) == 4
    assert time.monotonic() - begin > 1
    assert "the engine has work and made no progress for" in server.output()
    thread.join()
    assert isinstance(outcome[0], Exception)
    os.unlink(server.log.name)


def test_health_follows_the_engine(serve, stall):
    """And without the option the server is there when the engine goes on."""
    server = serve()
    with server.client() as http:
        expected = text_of(http, **ASKED)
        stall.touch()
        assert http.get("/health").status_code == 200  # at rest there is nothing to hang
        thread, outcome = ask_in_background(server)
        wait_until(lambda: http.get("/health").status_code == 503, 5, "that /health says 503")
        wait_until(lambda: "made no progress" in server.output(), 5, "a line in the log")
        stall.unlink()
        wait_until(lambda: http.get("/health").status_code == 200, 5, "that /health says 200")
        thread.join()
        assert outcome == [expected]
        wait_until(lambda: "the engine makes progress again" in server.output(), 5, "a line more")
    server.stop()
