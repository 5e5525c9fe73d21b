"""A service manager's view: READY, RELOADING, WATCHDOG and STOPPING, as in systemd's protocol."""

import os
import re
import shutil
import signal
import socket
import subprocess

import pytest

from gptd import BINARY, PATIENCE, ROOT, Server, run

UNIT = (ROOT / "scripts" / "gptd.service").read_text()


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


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    unit = tmp_path / "gptd.service"
    unit.write_text(UNIT.replace("/usr/local/bin/gptd", os.path.join(ROOT, BINARY)))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_units_options_exist():
    help_text = run("serve", "--help").stdout
    options = re.findall(r"--[a-z-]+", re.search(r"^ExecStart=(.*)$", UNIT, re.M).group(1))
    assert options and all(f"  {option} " in help_text for option in options)
