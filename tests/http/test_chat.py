"""POST /v1/chat/completions. The shipped model has no chat template of its own, so that it is
asked in plain "User: ... Assistant:" form."""

import pytest

from gptd import complete, events, refused

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Speak of love."}]
GREEDY = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24}


def content(reply, index=0):
    return reply["choices"][index]["message"]["content"]


def test_reply(http, model):
    reply = complete(http, PATH, **GREEDY)
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["model"] == model
    (choice,) = reply["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_greedy_is_stable(http):
    assert content(complete(http, PATH, **GREEDY)) == content(complete(http, PATH, **GREEDY))


def test_seed(http):
    body = {**GREEDY, "temperature": 1, "seed": 5}
    assert content(complete(http, PATH, **body)) == content(complete(http, PATH, **body))


def test_messages_matter(http):
    system = [{"role": "system", "content": "You are a king."}]
    turns = MESSAGES + [{"role": "assistant", "content": "I do."},
                        {"role": "user", "content": "More."}]
    lengths = {complete(http, PATH, **{**GREEDY, "messages": messages})["usage"]["prompt_tokens"]
               for messages in (MESSAGES, system + MESSAGES, turns)}
    assert len(lengths) == 3


def test_n(http):
    reply = complete(http, PATH, **{**GREEDY, "temperature": 1, "seed": 5}, n=3)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]


def test_max_completion_tokens(http):
    body = {"messages": MESSAGES, "max_completion_tokens": 3, "ignore_eos": True,
            "temperature": 0}
    assert complete(http, PATH, **body)["usage"]["completion_tokens"] <= 3


def test_without_max_tokens_the_context_is_the_limit(http):
    reply = complete(http, PATH, messages=MESSAGES, temperature=0)
    assert reply["usage"]["completion_tokens"] > 0


def test_stop(http):
    full = content(complete(http, PATH, **GREEDY))
    stop = full[4:9]
    assert content(complete(http, PATH, **GREEDY, stop=[stop])) == full[:full.index(stop)]


def test_logprobs(http):
    reply = complete(http, PATH, **GREEDY, logprobs=True, top_logprobs=2)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == reply["usage"]["completion_tokens"]
    for entry in entries:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]
        assert bytes(entry["bytes"]) is not None


def test_top_logprobs_needs_logprobs(http):
    assert refused(http, {**GREEDY, "top_logprobs": 2}, path=PATH)["param"] == "top_logprobs"


def test_stream_adds_up_to_the_reply(http):
    with http.stream("POST", PATH, json={**GREEDY, "stream": True}) as reply:
        chunks = list(events(reply.iter_lines()))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == content(complete(http, PATH, **GREEDY))
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] and not any(reasons[:-1])


@pytest.mark.parametrize("messages", [
    [], "hello", [{}], [{"role": "user"}], [{"content": "x"}], [{"role": "king", "content": "x"}],
    [{"role": "user", "content": 7}], [{"role": "user", "content": "x", "mood": "glad"}], None])
def test_bad_messages(http, messages):
    error = refused(http, {"messages": messages}, path=PATH)
    assert error["param"].startswith("messages"), error


def test_text_parts_are_lines(http):
    def ask(content_):
        return content(complete(http, PATH, **{**GREEDY, "messages": [
            {"role": "user", "content": content_}]}))

    parts = [{"type": "text", "text": "Speak"}, {"type": "text", "text": "of love."}]
    assert ask(parts) == ask("Speak\nof love.")


@pytest.mark.parametrize("name", ["tools", "tool_choice", "functions", "response_format",
                                  "prompt", "echo", "best_of", "suffix"])
def test_what_is_not_supported_is_refused_by_name(http, name):
    assert refused(http, {**GREEDY, name: "x"}, path=PATH)["param"] == name
