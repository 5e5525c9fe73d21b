"""Containers without a Docker engine: Debian's buildah and podman, with all their state under
build/container/, where layers stay for the next run. The base image is made from Debian's mirror
(scripts/container_base.sh) under the name that the Dockerfile asks for."""

import json
import os
import re
import shutil
import subprocess
import time

import httpx
import pytest

from gptd import PATIENCE, ROOT

STATE = ROOT / "build" / "container"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TOOLS = ("buildah", "podman", "runc")
# No systemd, no other cgroup manager and no right to raise limits is asked of the machine.
STORAGE_CONF = f"""
[storage]
driver = "overlay"
graphroot = "{STATE}/store"
runroot = "{STATE}/run"
"""
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=4096:4096"]
cgroupns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


def argument(name):
    """A build argument's default in the Dockerfile."""
    return re.search(rf"^ARG {name}=(.*)$", DOCKERFILE, re.M).group(1)


class Engine:
    def __init__(self):
        (STATE / "tmp").mkdir(parents=True, exist_ok=True)
        (STATE / "storage.conf").write_text(STORAGE_CONF)
        (STATE / "containers.conf").write_text(CONTAINERS_CONF)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GPTD_")},
            "CONTAINERS_STORAGE_CONF": str(STATE / "storage.conf"),
            "CONTAINERS_CONF": str(STATE / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": str(STATE / "tmp"),
        }

    def run(self, *command, timeout=120, check=True):
        ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT,
                               env=self.environment, timeout=timeout * PATIENCE,
                               stdin=subprocess.DEVNULL)
        assert not check or ended.returncode == 0, \
            f"{' '.join(map(str, command))}:\n{ended.stdout[-4000:]}{ended.stderr[-4000:]}"
        return ended

    def podman(self, *arguments, **more):
        return self.run("podman", "--tmpdir", STATE / "tmp" / "podman", *arguments, **more)

    def has(self, image):
        return self.run("buildah", "inspect", "--type", "image", image,
                        check=False).returncode == 0

    def inspect(self, image):
        return json.loads(self.podman("image", "inspect", image).stdout)[0]

    def import_base(self, image):
        """`image` under this machine's own name for it, if it is not there."""
        if self.has(f"localhost/{image}"):
            return
        suite = re.fullmatch(r"debian:([a-z]+)-slim", image).group(1)
        tar = STATE / f"{suite}.tar"
        if not tar.exists():
            if not shutil.which("mmdebstrap"):
                pytest.skip("no mmdebstrap to make the base image with")
            made = self.run(ROOT / "scripts/container_base.sh", f"{tar}.part.tar", suite,
                            timeout=200, check=False)
            if made.returncode != 0:
                pytest.skip("the base image cannot be made, is Debian's mirror reachable? "
                            + made.stderr[-300:])
            os.rename(f"{tar}.part.tar", tar)
        container = self.run("buildah", "from", "scratch").stdout.strip()
        self.run("buildah", "add", "-q", container, tar, "/")
        self.run("buildah", "config", "--cmd", "bash", container)
        self.run("buildah", "commit", "-q", "--format", "docker", container, f"localhost/{image}")
        self.run("buildah", "rm", container)

    def build(self, target, tag, *arguments, timeout=400):
        self.run("buildah", "bud", "--isolation", "chroot", "--network", "host", "--pull-never",
                 "--format", "docker", "--layers", "--target", target, "-t", f"localhost/{tag}",
                 *arguments, ".", timeout=timeout)
        return f"localhost/{tag}"


class Container:
    """A container of the image on the host's network, as docs/deploy.md runs it: read-only, without
    capabilities, under a memory limit."""

    def __init__(self, engine, image, port, *arguments, options=(), memory="96m"):
        self.engine = engine
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.monotonic()
        self.id = engine.podman(
            "run", "-d", "--pull", "never", "--network", "host", "--read-only", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--memory", memory, "-e", f"GPTD_PORT={port}",
            "-e", f"GPTD_URL={self.url}", *options, image, *arguments).stdout.strip()

    def wait_ready(self, timeout=30):
        while time.monotonic() < self.began + timeout * PATIENCE:
            try:
                if httpx.get(self.url + "/ready").status_code == 200:
                    return time.monotonic() - self.began
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"not ready in time:\n{self.logs()}")

    def logs(self):
        ended = self.engine.podman("logs", self.id, check=False)
        return ended.stdout + ended.stderr

    def state(self, what):
        return self.engine.podman("inspect", self.id, "--format", "{{" + what + "}}").stdout.strip()

    def remove(self):
        self.engine.podman("rm", "-f", "-v", self.id)
