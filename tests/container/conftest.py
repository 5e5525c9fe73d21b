"""Fixtures: an engine, the base image, and the CPU image built on it, once a run."""

import os
import shutil

import pytest

from containers import TOOLS, Engine, argument


@pytest.fixture(scope="session")
def engine():
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        pytest.skip(f"no {' '.join(missing)} here; scripts/setup.sh --container installs them")
    if os.geteuid() != 0:
        pytest.skip("building and running containers with these tools needs root")
    made = Engine()
    probe = made.podman("info", check=False)
    if probe.returncode != 0:
        pytest.skip("podman does not work here: " + probe.stderr[-300:])
    return made


@pytest.fixture(scope="session")
def base(engine):
    engine.import_base(argument("BASE"))
    return f"localhost/{argument('BASE')}"


@pytest.fixture(scope="session")
def image(engine, base):
    return engine.build("cpu", "gptd:test", "--build-arg", "VERSION=1.2.3-test")
