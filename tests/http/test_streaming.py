"""Server-sent events of /v1/completions, read raw: what the chunks say and what they add up to."""

import pytest

from gptd import complete, joined, refused, stream, text_of

PROMPT = "JULIET:\nO gentle"
BODIES = {
    "greedy": {"temperature": 0, "max_tokens": 40},
    "seeded": {"temperature": 1, "seed": 4, "max_tokens": 40},
    # Hot enough for pieces of UTF-8 that never become characters.
    "hot": {"temperature": 3, "seed": 4, "max_tokens": 120},
    "one token": {"temperature": 0, "max_tokens": 1},
    "echo": {"temperature": 0, "max_tokens": 10, "echo": True},
}


@pytest.mark.parametrize("name", BODIES)
def test_chunks_add_up_to_the_reply(http, name):
    body = {"prompt": PROMPT, **BODIES[name]}
    chunks = stream(http, **body)
    reply = complete(http, **body)
    assert joined(chunks) == reply["choices"][0]["text"]
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons[-1] == reply["choices"][0]["finish_reason"]
    assert not any(reasons[:-1])


def test_chunk_shape(http, model):
    chunks = stream(http, prompt=PROMPT, temperature=0, max_tokens=5)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        assert chunk["model"] == model
        assert chunk["created"] == chunks[0]["created"]
        assert chunk["system_fingerprint"]
        assert chunk.get("usage") is None


def test_tokens_arrive_one_by_one(http):
    chunks = stream(http, prompt=PROMPT, temperature=0, max_tokens=30, ignore_eos=True)
    assert len(chunks) > 10


def test_several_choices(http):
    body = {"prompt": PROMPT, "temperature": 1, "seed": 2, "max_tokens": 20, "n": 3}
    chunks = stream(http, **body)
    choices = complete(http, **body)["choices"]
    for choice in choices:
        assert joined(chunks, choice["index"]) == choice["text"]


def test_several_prompts(http):
    body = {"prompt": [PROMPT, "HAMLET:"], "temperature": 1, "seed": 2, "max_tokens": 20}
    chunks = stream(http, **body)
    for choice in complete(http, **body)["choices"]:
        assert joined(chunks, choice["index"]) == choice["text"]


def test_usage_chunk(http):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 7}
    chunks = stream(http, **body, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == complete(http, **body)["usage"] or (
        # The second run may count cached prompt tokens that the first did not have.
        chunks[-1]["usage"]["completion_tokens"] == 7)
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])


@pytest.mark.parametrize("begin, length", [(2, 3), (8, 12)])
def test_stop_strings_never_leak(http, begin, length):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 50}
    full = text_of(http, **body)
    stop = full[begin:begin + length]
    chunks = stream(http, **body, stop=stop)
    assert joined(chunks) == full[:full.index(stop)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_text_held_back_for_a_stop_is_shown_in_the_end(http):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 30}
    full = text_of(http, **body)
    assert joined(stream(http, **body, stop=full[-4:] + "\x01")) == full


def test_logprobs(http):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "logprobs": 2}
    chunks = stream(http, **body)
    whole = complete(http, **body)["choices"][0]["logprobs"]
    parts = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"]
             if choice["logprobs"]]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [item for part in parts for item in part[key]] == whole[key]


def test_errors_before_the_stream_are_plain_replies(http):
    error = refused(http, {"prompt": PROMPT, "stream": True, "temperature": -1})
    assert error["param"] == "temperature"


def test_stream_options_need_a_stream(http):
    error = refused(http, {"prompt": PROMPT, "stream_options": {"include_usage": True}})
    assert error["param"] == "stream_options"


def test_best_of_cannot_be_streamed(http):
    error = refused(http, {"prompt": PROMPT, "stream": True, "best_of": 3})
    assert error["param"] == "best_of"
