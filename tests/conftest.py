"""Fixtures: one server a module, and clients for it. A server that crashed, leaked or raced fails
the module's teardown, so that the run fails even when every reply was right."""

import os

import openai
import pytest

import gptd

# Nothing between us and 127.0.0.1.
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true",
                     help="test_faults.py: fail every call, not a sample of them (an hour)")


@pytest.fixture(scope="module")
def server(request):
    """Options of the module's own: `SERVER_OPTIONS = ["--max-seqs", "4"]`."""
    started = gptd.Server(*getattr(request.module, "SERVER_OPTIONS", []))
    yield started
    crashed = not started.running()
    started.stop()
    assert not crashed, "the server had ended before its tests did"


@pytest.fixture(scope="module")
def http(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0,
                         timeout=60 * gptd.PATIENCE)


@pytest.fixture(scope="module")
def model(http):
    """The id of the model that is served."""
    return http.get("/v1/models").json()["data"][0]["id"]


@pytest.fixture(scope="module")
def tokenize(http):
    def ids(text):
        reply = http.post("/v1/tokenize", json={"prompt": text})
        assert reply.status_code == 200, reply.text
        return reply.json()["tokens"]
    return ids
