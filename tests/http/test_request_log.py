"""The line that each request leaves in the log, and the id that ties it to its reply."""

import json
import re

import pytest

from gptd import MODEL, Server, run, wait_until

PROMPT, KEY = "Verily, a SECRET prompt", "gptd-" + "k" * 43
BODY = {"prompt": PROMPT, "max_tokens": 5, "temperature": 0, "ignore_eos": True}


@pytest.fixture(params=["text", "json"], scope="module")
def logging(request, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY} alice\n")
    keys.chmod(0o600)
    server = Server("--log-format", request.param, "--api-key-file", keys)
    yield server, request.param
    server.stop()


def line_of(server, name):
    """The log's line about the request with this id, once it is there."""
    wait_until(lambda: name in server.output(), what=f"a line about {name}")
    return next(line for line in server.output().splitlines() if name in line)


def test_a_completion(logging):
    server, form = logging
    with server.client(headers={"Authorization": f"Bearer {KEY}"}) as http:
        reply = http.post("/v1/completions", json=BODY, headers={"X-Request-Id": "mine-1"})
        assert reply.headers["X-Request-Id"] == "mine-1"
        n = reply.json()["usage"]["prompt_tokens"]
    line = line_of(server, "mine-1")
    if form == "json":
        event = json.loads(line)
        assert event["key"] == "alice" and event["method"] == "POST" and event["status"] == 200
        assert event["route"] == "/v1/completions" and event["completion"] == reply.json()["id"]
        assert event["prompt_tokens"] == n and event["completion_tokens"] == 5
        assert event["finish_reason"] == "length" and event["level"] == "info"
        assert 0 <= event["queue_ms"] <= event["first_token_ms"] <= event["total_ms"]
    else:
        assert re.search(r"info  mine-1 POST /v1/completions 200 [0-9.]+ ms, key alice, cmpl-\w+: "
                         rf"{n} prompt tokens \(\d+ cached\), 5 completion tokens, "
                         r"queued [0-9.]+ ms, first token [0-9.]+ ms, length$", line), line


def test_refusals_have_a_line_too(logging):
    server, _ = logging
    with server.client() as http:
        reply = http.post("/v1/completions", json=BODY, headers={"X-Request-Id": "nobody-1"})
        assert reply.status_code == 401 and reply.headers["X-Request-Id"] == "nobody-1"
        reply = http.get("/nowhere", headers={"X-Request-Id": "nowhere-1"})
        assert reply.headers["X-Request-Id"] == "nowhere-1"
    assert "401" in line_of(server, "nobody-1")
    line_of(server, "nowhere-1")


@pytest.mark.parametrize("given", [b"", b"two words", b"tab\there", b"x" * 129, "ä".encode()])
def test_odd_ids_are_replaced(logging, given):
    server, _ = logging
    with server.client() as http:
        reply = http.get("/health", headers={"X-Request-Id": given})
        assert re.fullmatch(r"req-[0-9a-f]{16}", reply.headers["X-Request-Id"])


def test_ids_that_are_kept(logging):
    server, form = logging
    with server.client() as http:
        for given in ("x", "y" * 128, '"quoted\\"', "{}<>%n%s"):
            reply = http.get("/nowhere", headers={"X-Request-Id": given})
            assert reply.headers["X-Request-Id"] == given
            line_of(server, json.dumps(given)[1:-1] if form == "json" else given)


def test_every_line_is_an_event(logging):
    server, form = logging
    with server.client() as http:
        http.get("/health")
    lines = [line for line in server.output().splitlines() if not line.startswith("listening on")]
    for line in lines:
        if form == "json":
            assert json.loads(line)["level"] in ("info", "warn", "error")
        else:
            assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z (info|warn|error) ", line), line
    assert not any("/health" in line and "200" in line for line in lines)


def test_neither_prompts_nor_keys_are_logged(logging):
    server, _ = logging
    with server.client(headers={"Authorization": f"Bearer {KEY}"}) as http:
        text = http.post("/v1/completions", json=BODY).json()["choices"][0]["text"]
        http.post("/v1/completions", content=b'{"prompt": "' + PROMPT.encode())
        http.post("/v1/completions", json={**BODY, "temperature": "SECRET"})
        http.get("/v1/files", headers={"Authorization": "Bearer SECRET"})
    output = server.output()
    assert "SECRET" not in output and KEY not in output and text not in output


def test_requests_need_not_be_logged():
    server = Server("--no-log-requests")
    with server.client() as http:
        assert http.get("/nowhere").status_code == 404
    assert "req-" not in server.output()
    server.stop()


def test_formats():
    done = run("serve", "--model", MODEL, "--log-format", "xml")
    assert done.returncode == 2 and "text or json" in done.stderr
