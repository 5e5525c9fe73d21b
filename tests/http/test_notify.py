"""A service manager's view: READY, RELOADING, WATCHDOG and STOPPING, as systemd's protocol has them."""

import os
import signal
import socket

import pytest

from gptd import PATIENCE, Server


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A fake one: its socket, and its name as NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@gptd-test-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(name.replace("@", "\0"))
        s.settimeout(10 * PATIENCE)
        yield s, name


def serve(name, **more):
    """A server that this manager started."""
    return Server(env={**os.environ, "NOTIFY_SOCKET": name, **more})


def next_of(s, *, but=()):
    """The next message that is none of `but`."""
    while True:
        state = s.recv(1000).decode()
        if state not in but:
            return state


def test_a_service_lives(manager):
    s, name = manager
    server = serve(name, WATCHDOG_USEC="200000")
    beat = ["WATCHDOG=1"]
    assert next_of(s, but=beat) == "READY=1"
    assert next_of(s) in beat and next_of(s) in beat  # twice in its time, at least
    server.process.send_signal(signal.SIGHUP)
    first, second = next_of(s, but=beat).split("\n")
    assert first == "RELOADING=1" and int(second.removeprefix("MONOTONIC_USEC=")) > 0
    assert next_of(s, but=beat) == "READY=1"
    server.process.send_signal(signal.SIGTERM)
    assert next_of(s, but=beat) == "STOPPING=1"
    server.check_end()


def test_no_watchdog_unless_it_is_ours(manager):
    s, name = manager
    server = serve(name, WATCHDOG_USEC="50000", WATCHDOG_PID="1")
    assert next_of(s) == "READY=1"
    server.process.send_signal(signal.SIGTERM)
    assert next_of(s) == "STOPPING=1"
    server.check_end()


def test_a_manager_that_is_gone_is_no_harm(tmp_path):
    serve(str(tmp_path / "gone"), WATCHDOG_USEC="1000000").stop()
