"""The official openai client and curl, unchanged, against gptd."""

import json
import shutil
import subprocess

import openai
import pytest

PROMPT = "HAMLET:\nTo be"


def test_openai_completion(client, model):
    reply = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0)
    assert reply.choices[0].text
    assert reply.usage.completion_tokens <= 12


def test_openai_every_parameter(client, model):
    reply = client.completions.create(
        model=model, prompt=[PROMPT, "OPHELIA:"], max_tokens=12, temperature=0.9, top_p=0.9, n=2,
        best_of=3, echo=True, logprobs=2, stop=["\n\n\n"], seed=3, presence_penalty=0.1,
        frequency_penalty=0.1, logit_bias={"5": -1}, user="tests",
        extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True})
    assert len(reply.choices) == 4
    assert all(choice.logprobs.tokens for choice in reply.choices)


def test_openai_stream(client, model):
    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=30, temperature=0)
    chunks = list(client.completions.create(model=model, prompt=PROMPT, max_tokens=30,
                                            temperature=0, stream=True,
                                            stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_chat(client, model):
    messages = [{"role": "system", "content": "Speak as a queen."},
                {"role": "user", "content": "Who are you?"}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=20,
                                           temperature=0)
    chunks = list(client.chat.completions.create(model=model, messages=messages, max_tokens=20,
                                                 temperature=0, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content


def test_openai_chat_logprobs(client, model):
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Speak."}], max_tokens=5,
        temperature=0, logprobs=True, top_logprobs=3)
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 3


def test_openai_models(client, model):
    assert [entry.id for entry in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


def test_openai_errors(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT, temperature=-3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT, extra_body={"temprature": 1})
    assert caught.value.param == "temprature"


def test_openai_client_may_leave_a_stream(client, model):
    with client.completions.create(model=model, prompt=PROMPT, max_tokens=200,
                                   stream=True) as chunks:
        for _ in chunks:
            break
    assert client.completions.create(model=model, prompt=PROMPT, max_tokens=2).choices


def curl(server, path, *arguments):
    if not shutil.which("curl"):
        pytest.fail("curl is missing: scripts/setup.sh installs it")
    return subprocess.run(["curl", "-sS", "--noproxy", "*", *arguments, server.url + path],
                          capture_output=True, text=True, timeout=120, check=True).stdout


JSON = ("-H", "Content-Type: application/json")


def test_curl_completion(server):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 8, "temperature": 0})
    assert json.loads(curl(server, "/v1/completions", *JSON, "-d", body))["choices"]


def test_curl_without_the_type_is_told_what_to_say(server):
    """curl -d alone claims to send a form, as a web page of any origin could."""
    reply = json.loads(curl(server, "/v1/completions", "-d", json.dumps({"prompt": PROMPT})))
    assert "Content-Type: application/json" in reply["error"]["message"]


def test_curl_stream(server):
    out = curl(server, "/v1/completions", *JSON, "-N", "-d",
               json.dumps({"prompt": PROMPT, "max_tokens": 8, "stream": True}))
    assert out.startswith("data: {") and out.endswith("data: [DONE]\n\n")


def test_curl_expect_100_continue(server):
    body = json.dumps({"prompt": PROMPT * 20, "max_tokens": 1})
    reply = json.loads(curl(server, "/v1/completions", *JSON, "-H", "Expect: 100-continue",
                            "-d", body))
    assert reply["choices"]


def test_curl_chunked_upload(server):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1})
    reply = json.loads(curl(server, "/v1/completions", *JSON, "-H",
                            "Transfer-Encoding: chunked",
                            "-d", body))
    assert reply["choices"]


def test_curl_http_1_0(server):
    assert json.loads(curl(server, "/v1/models", "--http1.0"))["data"]


def test_curl_head(server):
    head = curl(server, "/health", "-I")
    assert head.split()[1] in ("200", "405")
