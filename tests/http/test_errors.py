"""What must be refused, and how: status, OpenAI's error shape, the parameter's name."""

import pytest

from gptd import CONFIG, CONTEXT, check_error, complete, refused

ROUTES = {"/v1/completions": {"prompt": "A", "max_tokens": 1},
          "/v1/chat/completions": {"messages": [{"role": "user", "content": "A"}],
                                   "max_tokens": 1}}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", ["temprature", "Prompt", "a\nb", "x" * 200, "é"])
def test_unknown_parameter(http, path, name):
    error = refused(http, {**ROUTES[path], name: 1}, path=path)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == name or (len(name) > 60 and name.startswith(error["param"][:40]))


def test_unknown_parameter_suggests_the_nearest(http):
    assert "temperature" in refused(http, {"prompt": "A", "temprature": 1})["message"]


@pytest.mark.parametrize("path, name, home", [
    ("/v1/completions", "messages", "/v1/chat/completions"),
    ("/v1/completions", "max_completion_tokens", "/v1/chat/completions"),
    ("/v1/chat/completions", "prompt", "/v1/completions")])
def test_a_parameter_of_another_route_says_which(http, path, name, home):
    error = refused(http, {**ROUTES[path], name: "A"}, path=path)
    assert error["message"].endswith(f", but of {home}")


ILL_TYPED = [
    ("temperature", "hot"), ("temperature", -0.1), ("temperature", 1e9), ("temperature", []),
    ("temperature", True), ("top_p", 0), ("top_p", 1.5), ("top_p", "1"), ("top_k", 1.5),
    ("top_k", -1), ("min_p", -1), ("min_p", 2), ("repetition_penalty", 0),
    ("presence_penalty", 3), ("frequency_penalty", -3), ("max_tokens", 1.5), ("max_tokens", -1),
    ("max_tokens", "16"), ("max_tokens", 1e30), ("n", 0), ("n", 10**6), ("n", 1.5), ("n", "1"),
    ("stream", 1), ("stream", "true"), ("seed", 1.5), ("seed", "1"), ("seed", {}),
    ("stop", 5), ("stop", [5]), ("stop", ["a", None]), ("stop", [""]), ("stop", ["x"] * 100),
    ("stop", "x" * 10000), ("logit_bias", []), ("logit_bias", {"a": 1}), ("logit_bias", {"1": "x"}),
    ("logit_bias", {"1": 1000}), ("logit_bias", {str(CONFIG["vocab_size"]): 1}),
    ("logit_bias", {"-1": 1}), ("logit_bias", {"1.5": 1}), ("ignore_eos", 1),
    ("stream_options", 5), ("user", 5), ("model", 5)]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name, value", ILL_TYPED)
def test_ill_typed(http, path, name, value):
    error = refused(http, {**ROUTES[path], name: value}, path=path)
    assert error["param"].split(".")[0].split("[")[0] == name, error


@pytest.mark.parametrize("name, value", [
    ("logprobs", -1), ("logprobs", 21), ("logprobs", True), ("logprobs", 1.5), ("best_of", 0),
    ("echo", "yes"), ("prompt", None), ("prompt", 5), ("prompt", {}), ("prompt", []),
    ("prompt", [[]]), ("prompt", ["a", 5]), ("prompt", [1, "a"]), ("prompt", [1.5]),
    ("prompt", [-1]), ("prompt", [CONFIG["vocab_size"]]), ("prompt", [[1], 2]),
    ("prompt", ["a"] * 10000)])
def test_ill_typed_completion(http, name, value):
    error = refused(http, {"prompt": "A", name: value})
    assert error["param"].split("[")[0] == name, error


@pytest.mark.parametrize("name", ["suffix", "tools", "functions", "guided_json"])
def test_unsupported(http, name):
    assert refused(http, {"prompt": "A", name: "x"})["param"] == name


def test_missing_prompt(http):
    assert refused(http, {"max_tokens": 1})["param"] == "prompt"


def test_duplicate_key(http):
    error = refused(http, b'{"prompt": "A", "seed": 1, "seed": 2}')
    assert error["param"] == "seed"
    assert refused(http, b'{"prompt": "A", "logit_bias": {"5": 1, "5": 2}}')["param"]


@pytest.mark.parametrize("body", [
    b"", b"{", b"}", b"[]", b"null", b'"x"', b"5", b"{}x", b'{"prompt": "A"} {}',
    b"{'prompt': 1}", b'{"prompt": "A",}', b'{"prompt": "A", "seed": NaN}',
    b'{"prompt": "A", "temperature": Infinity}', b'{"prompt": "A", "temperature": 1e999}',
    b'{"prompt": "A", "seed": 01}', b'{"prompt": "\xff"}', b'{"prompt": "\xc3"}',
    b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "\\ud800"}', b'{"prompt": "a\\u0000b"}',
    b'{"prompt": "\\x41"}', b'{"prompt": "a\nb"}', b"\xef\xbb\xbf{}", b"\x00" * 10,
    b'{"prompt": "A"\x00}', b"[" * 100000, b'{"a":' * 5000 + b"1" + b"}" * 5000])
def test_malformed_json(http, body):
    refused(http, body)


def test_deep_json_inside_a_valid_body(http):
    refused(http, b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}")


def test_integers_may_be_written_as_floats(http):
    """JSON has one number type: 2.0 is an integer."""
    reply = http.post("/v1/completions", content=b'{"prompt": "A", "max_tokens": 2.0, "n": 1e0}')
    assert reply.status_code == 200, reply.text


def test_oversized_body(http):
    body = b'{"prompt": "' + b"a" * (5 << 20) + b'"}'
    reply = http.post("/v1/completions", content=body)
    assert reply.status_code == 413
    check_error(reply)
    # The same without a length in advance.
    reply = http.post("/v1/completions", content=(body[i:i + 65536]
                                                  for i in range(0, len(body), 65536)))
    assert reply.status_code == 413


def test_long_prompt(http):
    error = refused(http, {"prompt": "word " * 5000})
    assert str(CONTEXT) in error["message"] and error["param"] in ("prompt", "max_tokens")
    # A megabyte is refused as quickly.
    refused(http, {"prompt": "a" * (1 << 20)})


@pytest.mark.parametrize("path, allowed", [
    ("/v1/completions", "POST"), ("/v1/chat/completions", "POST"), ("/v1/tokenize", "POST"),
    ("/v1/detokenize", "POST"), ("/v1/models", "GET"), ("/v1/memory", "GET"), ("/health", "GET"),
    ("/ready", "GET"), ("/metrics", "GET"), ("/openapi.json", "GET")])
def test_wrong_method(http, path, allowed):
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "NONSENSE"} - {allowed}:
        reply = http.request(method, path)
        assert reply.status_code == 405, (method, reply.status_code)
        assert allowed in reply.headers["allow"]
        check_error(reply)


@pytest.mark.parametrize("path", ["/page", "/v1", "/v1/", "/v1/completion", "/v1/completions/",
                                  "/../etc/passwd", "/x%00", "//v1/models", "/v1/models/"])
def test_unknown_path(http, path):
    for method in ("GET", "POST"):
        reply = http.request(method, path, content=b"{}" if method == "POST" else None)
        assert reply.status_code in (404, 405), (path, reply.status_code)
        check_error(reply)


def test_unknown_model(http):
    error = refused(http, {"prompt": "A", "model": "nobody"}, status=404)
    assert "nobody" in error["message"] and error["param"] == "model"


def test_errors_hurt_nobody(http):
    """After everything above, the server still answers."""
    assert complete(http, prompt="A", max_tokens=2)["choices"]
