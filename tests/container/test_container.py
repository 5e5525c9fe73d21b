"""The CPU image, built from the Dockerfile as it is and run as docs/deploy.md says."""

import json
import socket
import threading

import httpx
import openai
import pytest

import gptd
from containers import Container
from gptd import PATIENCE, wait_until

MODEL = "/usr/share/gptd/models/shakespeare"
LIMIT = 96 << 20


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def start(engine, image):
    started = []

    def make(*arguments, **more):
        started.append(Container(engine, image, free_port(), *arguments, **more))
        return started[-1]
    yield make
    for container in started:
        container.remove()


@pytest.fixture(scope="module")
def server(start):
    container = start("serve", "--no-auth", "--model", MODEL)
    container.wait_ready()
    return container


def test_the_image_is_small(engine, base, image):
    above = engine.inspect(image)["Size"] - engine.inspect(base)["Size"]
    assert 5e6 < above < 40e6, f"{above / 1e6:.1f} MB above the base"


def test_what_the_image_says_of_itself(engine, image):
    inspected = engine.inspect(image)
    config = inspected["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["gptd"]
    assert set(config["Volumes"]) == {"/models", "/data"}
    assert inspected["Healthcheck"]["Test"] == ["CMD", "gptd", "probe"]
    assert config["Labels"]["org.opencontainers.image.version"] == "1.2.3-test"
    version = engine.podman("run", "--rm", "--pull", "never", "--network", "none", image,
                            "--version").stdout
    assert version.startswith("gptd 1.2.3-test\nlibmicrohttpd ")


def test_the_bill_of_materials_lists_what_is_linked(engine, image):
    inside = ("run", "--rm", "--pull", "never", "--network", "none", "--entrypoint")
    bill = json.loads(engine.podman(*inside, "cat", image,
                                    "/usr/share/doc/gptd/sbom.spdx.json").stdout)
    listed = {p["name"]: p["versionInfo"] for p in bill["packages"]}
    assert listed.pop("gptd") == "1.2.3-test"
    assert len(listed) >= 7
    installed = engine.podman(*inside, "dpkg-query", image, "-W", "-f",
                              "${Package} ${Version}\n").stdout
    assert set(listed.items()) <= {tuple(line.split(" ")) for line in installed.splitlines()}
    assert "libmicrohttpd" in str(listed)


def test_without_keys_it_does_not_listen(start):
    """GPTD_HOST of the image is everywhere; who lets everyone in must say so."""
    container = start("serve", "--model", MODEL)
    wait_until(lambda: container.state(".State.Status") == "exited", what="the end")
    assert container.state(".State.ExitCode") == "2"
    assert "--api-key-file" in container.logs()


def test_it_answers_as_nobody_within_its_memory(engine, server):
    http = httpx.Client(base_url=server.url, timeout=60 * PATIENCE)
    text = gptd.text_of(http, prompt="ROMEO:", max_tokens=50, seed=1, temperature=0.8)
    assert len(text) > 20
    status = engine.podman("exec", server.id, "cat", "/proc/1/status").stdout
    assert "\nUid:\t10001\t10001\t10001\t10001\n" in status
    assert "\nCapEff:\t0000000000000000\n" in status and "\nNoNewPrivs:\t1\n" in status
    process = gptd.memory(http)["process"]
    assert 0 < process["rss_bytes"] <= process["peak_rss_bytes"] < LIMIT
    assert int(server.state(".HostConfig.Memory")) == LIMIT


def test_its_root_cannot_be_written(engine, server):
    for path in ("/usr/local/bin/x", "/etc/x", "/x"):
        ended = engine.podman("exec", "--user", "0", server.id, "touch", path, check=False)
        assert ended.returncode != 0 and "Read-only" in ended.stderr
    assert engine.podman("exec", server.id, "touch", "/data/x", "/models/x").returncode == 0


def test_health(engine, server):
    assert engine.podman("healthcheck", "run", server.id, check=False).returncode == 0
    elsewhere = engine.podman("exec", "-e", "GPTD_URL=http://127.0.0.1:1", server.id, "gptd",
                              "probe", check=False)
    assert elsewhere.returncode == 1


def test_a_training_job(server):
    """Its data and its model lie on the volume; the root stays read-only."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    text = b"Now is the winter of our discontent made glorious summer by this sun of York.\n" * 200
    data = client.files.create(file=("data.txt", text), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="configs/tiny_char", training_file=data.id,
        extra_body={"max_iters": 2, "batch_size": 2})
    ended = ("succeeded", "failed", "cancelled")
    wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ended, 60,
               "the job's end")
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error


def test_keys_come_as_files(engine, start, tmp_path):
    keys = tmp_path / "users.keys"
    keys.write_text("a-users-key-of-32-characters-0001 alice\n")
    keys.chmod(0o644)
    container = start("serve", options=("-v", f"{keys}:/run/secrets/users.keys:ro", "-e",
                                        "GPTD_API_KEY_FILE=/run/secrets/users.keys", "-e",
                                        f"GPTD_MODEL=mine={MODEL}"))
    container.wait_ready()
    assert "<title>gptd</title>" in httpx.get(container.url + "/").text
    assert httpx.get(container.url + "/v1/models").status_code == 401
    models = httpx.get(container.url + "/v1/models", headers={
        "Authorization": "Bearer a-users-key-of-32-characters-0001"})
    assert models.json()["data"][0]["id"] == "mine"


def test_stopping_lets_a_request_finish(engine, start):
    container = start("serve", "--no-auth", "--model", MODEL, "--max-seqs", "2")
    container.wait_ready()
    chunks = []
    begun = threading.Event()

    def read():
        body = {"prompt": ["JULIET:"] * 16, "max_tokens": 250, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", container.url + "/v1/completions", json=body,
                          timeout=60 * PATIENCE) as reply:
            for event in gptd.events(reply.iter_lines()):
                chunks.append(event)
                begun.set()
    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20 * PATIENCE)
    engine.podman("stop", "-t", "60", container.id)
    reader.join(20 * PATIENCE)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons.count("length") == 16
    assert container.state(".State.ExitCode") == "0"
    assert "shutting down: 1 requests" in container.logs() and "bye" in container.logs()
