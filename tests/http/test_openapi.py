"""GET /openapi.json against the server it describes."""

import pytest
from openapi_spec_validator import validate

from gptd import PATIENCE

BODIES = {"/v1/completions": {"prompt": "A", "max_tokens": 2},
          "/v1/chat/completions": {"messages": [{"role": "user", "content": "A"}],
                                   "max_tokens": 2},
          "/v1/tokenize": {"prompt": "A"}, "/v1/detokenize": {"tokens": [5]},
          "/v1/memory/plan": {"config": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64,
                                         "vocab_size": 100}}}


@pytest.fixture(scope="module")
def spec(http):
    reply = http.get("/openapi.json")
    assert reply.status_code == 200
    return reply.json()


def resolved(spec, schema):
    """Follows $ref."""
    while "$ref" in schema:
        node = spec
        for step in schema["$ref"].removeprefix("#/").split("/"):
            node = node[step]
        schema = node
    return schema


def request_schema(spec, path):
    body = spec["paths"][path]["post"]["requestBody"]
    return resolved(spec, body["content"]["application/json"]["schema"])


def an_example(spec, schema):
    """Some value that the schema allows."""
    schema = resolved(spec, schema)
    for key in ("example", "default", "const"):
        if schema.get(key) is not None:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return an_example(spec, schema[key][0])
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return {"boolean": False, "string": "a", "null": None, "object": {},
            "array": [an_example(spec, schema["items"])] if "items" in schema else []}[kind]


def test_valid(spec):
    assert spec["openapi"].startswith("3.1")
    validate(spec)


def test_request_ids(http, spec):
    """Every operation takes one, and every reply has one."""
    for methods in spec["paths"].values():
        for operation in methods.values():
            taken = [resolved(spec, parameter) for parameter in operation["parameters"]]
            assert ("X-Request-Id", "header") in [(p["name"], p["in"]) for p in taken]
            for reply in operation["responses"].values():
                assert resolved(spec, reply["headers"]["X-Request-Id"])["required"]
    for path in ("/health", "/nowhere"):
        mine = http.get(path, headers={"X-Request-Id": "mine"})
        assert mine.headers["X-Request-Id"] == "mine"
        assert http.get(path).headers["X-Request-Id"]


def test_every_documented_route_answers(http, spec, model):
    for path, methods in spec["paths"].items():
        if path.startswith(("/v1/files", "/v1/fine_tuning", "/v1/models/load")):
            continue  # test_fine_tuning.py, test_models_swap.py
        for method in methods:
            if method == "delete":
                continue
            url = path.replace("{id}", "page.js" if path.startswith("/page/") else model)
            assert "{" not in url, path
            reply = http.request(method.upper(), url, json=BODIES.get(path), timeout=60 * PATIENCE)
            assert reply.status_code == 200, (method, path, reply.text)
            assert str(reply.status_code) in methods[method]["responses"]


def test_every_route_is_documented(spec):
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/tokenize",
            "/v1/detokenize", "/v1/files", "/v1/fine_tuning/jobs", "/v1/memory", "/health",
            "/ready", "/metrics", "/openapi.json", "/"} <= set(spec["paths"])


@pytest.mark.parametrize("path", BODIES)
def test_every_documented_parameter_is_accepted(http, spec, model, path):
    """Alone beside the required ones; what it needs beside it is given too."""
    companions = {"top_logprobs": {"logprobs": True}, "stream_options": {"stream": True},
                  "max_completion_tokens": {"max_tokens": None}}
    if path == "/v1/memory/plan":
        companions["model"] = {"config": None}
    for name, schema in request_schema(spec, path)["properties"].items():
        value = model if name == "model" else an_example(spec, schema)
        body = {**BODIES[path], **companions.get(name, {})}
        body = {key: item for key, item in body.items() if item is not None}
        if name not in BODIES[path]:
            body[name] = value
        reply = http.post(path, json=body)
        assert reply.status_code == 200, (name, value, reply.text)


@pytest.mark.parametrize("path", BODIES)
def test_what_is_not_documented_is_refused(http, spec, path):
    schema = request_schema(spec, path)
    assert schema.get("additionalProperties") is False
    assert "nonsense" not in schema["properties"]
    reply = http.post(path, json={**BODIES[path], "nonsense": 1})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "nonsense"


@pytest.mark.parametrize("path", BODIES)
def test_required_parameters_are_required(http, spec, path):
    for name in request_schema(spec, path)["required"]:
        body = {key: value for key, value in BODIES[path].items() if key != name}
        reply = http.post(path, json=body)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == name
