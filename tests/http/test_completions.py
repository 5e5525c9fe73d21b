"""POST /v1/completions: every parameter, by what it must change."""

import json
from collections import Counter

import pytest

from gptd import CONTEXT, MODEL, complete, refused, text_of

PROMPT = "ROMEO:\nWhat light"
GREEDY = {"prompt": PROMPT, "temperature": 0}
SEEDED = {"prompt": PROMPT, "temperature": 1, "seed": 7}
EOS = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]


def test_defaults(http, model, tokenize):
    reply = complete(http, prompt=PROMPT)
    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["model"] == model
    assert isinstance(reply["created"], int)
    assert reply["system_fingerprint"]
    (choice,) = reply["choices"]
    assert choice["index"] == 0
    assert choice["logprobs"] is None
    assert choice["finish_reason"] in ("length", "stop")
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(tokenize(PROMPT))
    assert usage["completion_tokens"] <= 16
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_greedy_is_stable(http):
    texts = {text_of(http, **GREEDY, max_tokens=60) for _ in range(4)}
    assert len(texts) == 1 and texts.pop()


def test_seed_fixes_the_text(http):
    first = text_of(http, **SEEDED, max_tokens=60)
    assert first == text_of(http, **SEEDED, max_tokens=60)
    assert first != text_of(http, **{**SEEDED, "seed": 8}, max_tokens=60)


def test_without_a_seed_texts_differ(http):
    assert len({text_of(http, prompt=PROMPT, temperature=1, max_tokens=60)
                for _ in range(4)}) > 1


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**53 - 1])
def test_seeds_of_every_size(http, seed):
    body = {**SEEDED, "seed": seed}
    assert text_of(http, **body) == text_of(http, **body)


def test_fewer_tokens_are_a_prefix(http):
    long = text_of(http, **SEEDED, max_tokens=50)
    short = text_of(http, **SEEDED, max_tokens=20)
    assert long.startswith(short.rstrip("\ufffd"))


def test_max_tokens_is_kept(http):
    reply = complete(http, **GREEDY, max_tokens=33, ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == 33
    assert reply["choices"][0]["finish_reason"] == "length"


def test_n_choices(http):
    alone = complete(http, **SEEDED, max_tokens=30)
    three = complete(http, **SEEDED, max_tokens=30, n=3)
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["choices"][0]["text"] == alone["choices"][0]["text"]
    assert len({choice["text"] for choice in three["choices"]}) == 3
    assert three["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] > alone["usage"]["completion_tokens"]


def test_best_of_returns_the_most_probable(http):
    body = {**SEEDED, "max_tokens": 20, "logprobs": 0}
    choices = complete(http, **body, n=4)["choices"]

    def mean(choice):
        scores = choice["logprobs"]["token_logprobs"]
        return sum(scores) / len(scores)

    ranked = sorted(choices, key=mean, reverse=True)
    best = complete(http, **body, best_of=4)["choices"]
    assert [choice["text"] for choice in best] == [ranked[0]["text"]]
    two = complete(http, **body, best_of=4, n=2)["choices"]
    assert [choice["text"] for choice in two] == [choice["text"] for choice in ranked[:2]]


def test_best_of_less_than_n_is_refused(http):
    assert refused(http, {**SEEDED, "n": 3, "best_of": 2})["param"] == "best_of"


def test_echo(http):
    plain = text_of(http, **GREEDY, max_tokens=20)
    assert text_of(http, **GREEDY, max_tokens=20, echo=True) == PROMPT + plain


def test_logprobs(http, tokenize):
    reply = complete(http, **GREEDY, max_tokens=12, logprobs=3, ignore_eos=True)
    choice = reply["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == 12
    assert "".join(logprobs["tokens"]) == choice["text"]
    offset = 0
    for token, score, top, at in zip(logprobs["tokens"], logprobs["token_logprobs"],
                                     logprobs["top_logprobs"], logprobs["text_offset"]):
        assert score <= 0
        assert 3 <= len(top) <= 4
        # Greedy: the token is the most probable one.
        assert top[token] == score == max(top.values())
        assert at == offset
        offset += len(token)


def test_logprobs_0_reports_the_token_alone(http):
    logprobs = complete(http, **SEEDED, max_tokens=5, logprobs=0)["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == 5


def test_scoring_a_prompt(http, tokenize):
    ids = tokenize(PROMPT)
    reply = complete(http, prompt=PROMPT, max_tokens=0, echo=True, logprobs=2)
    choice = reply["choices"][0]
    assert choice["text"] == PROMPT
    assert reply["usage"]["completion_tokens"] == 0
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids)
    assert logprobs["token_logprobs"][0] is None
    assert all(score <= 0 for score in logprobs["token_logprobs"][1:])
    assert logprobs["top_logprobs"][0] is None
    assert all(len(top) >= 2 for top in logprobs["top_logprobs"][1:])


def test_scoring_a_reply_gives_the_same_bits_as_generating_it(http, tokenize):
    ids = tokenize(PROMPT)
    bias = {"logit_bias": {str(EOS): -100}}
    reply = complete(http, **GREEDY, **bias, max_tokens=40, logprobs=0)
    generated = reply["choices"][0]["logprobs"]["token_logprobs"]
    text = reply["choices"][0]["text"]
    everything = tokenize(PROMPT + text)
    scored = complete(http, prompt=everything, max_tokens=0, echo=True,
                      logprobs=0)["choices"][0]["logprobs"]["token_logprobs"]
    if len(everything) == len(ids) + 40:  # the text tokenizes as it was generated
        assert scored[len(ids):] == generated
    # Where it does not, the first tokens still agree.
    assert scored[1:len(ids)] == complete(
        http, prompt=ids, max_tokens=0, echo=True,
        logprobs=0)["choices"][0]["logprobs"]["token_logprobs"][1:]


def test_max_tokens_0_needs_echo(http):
    assert refused(http, {**GREEDY, "max_tokens": 0})["param"] == "max_tokens"


@pytest.mark.parametrize("begin, length", [(3, 1), (5, 4), (10, 9), (20, 15)])
def test_stop_string_that_spans_tokens(http, begin, length):
    full = text_of(http, **GREEDY, max_tokens=60)
    stop = full[begin:begin + length]
    choice = complete(http, **GREEDY, max_tokens=60, stop=stop)["choices"][0]
    assert choice["text"] == full[:full.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_stop_list_takes_the_earliest(http):
    full = text_of(http, **GREEDY, max_tokens=60)
    stops = [full[30:36], full[12:17], "never to be seen"]
    choice = complete(http, **GREEDY, max_tokens=60, stop=stops)["choices"][0]
    end = min(full.index(stop) for stop in stops[:2])
    assert choice["text"] == full[:end]


def test_stop_that_never_comes_changes_nothing(http):
    full = text_of(http, **GREEDY, max_tokens=40)
    assert text_of(http, **GREEDY, max_tokens=40, stop=["\x01\x02", full[-3:] + "\x01"]) == full


def test_logit_bias_forces_a_token(http, tokenize):
    # With +100 the token wins every step; another one banned shows that -100 bites too.
    (comma,) = tokenize(",")
    reply = complete(http, **GREEDY, max_tokens=5, logit_bias={str(comma): 100})
    assert reply["choices"][0]["text"] == ",,,,,"


def test_logit_bias_bans_a_token(http):
    body = {**GREEDY, "max_tokens": 30, "logprobs": 0}
    free = complete(http, **body)["choices"][0]["logprobs"]["tokens"]
    ids = http.post("/v1/tokenize", json={"prompt": free[0]}).json()["tokens"]
    if len(ids) != 1:
        pytest.skip("the first token does not tokenize to itself")
    banned = complete(http, **body, logit_bias={str(ids[0]): -100})
    assert free[0] not in banned["choices"][0]["logprobs"]["tokens"]


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 2}, {"presence_penalty": 2},
                                     {"repetition_penalty": 1.5}])
def test_penalties_make_tokens_rarer(http, penalty):
    body = {**GREEDY, "max_tokens": 120, "logprobs": 0, "ignore_eos": True}

    def distinct(**more):
        tokens = complete(http, **body, **more)["choices"][0]["logprobs"]["tokens"]
        return len(Counter(tokens))

    assert distinct(**penalty) > distinct()


@pytest.mark.parametrize("off", [{"frequency_penalty": 0}, {"presence_penalty": 0},
                                 {"repetition_penalty": 1}, {"top_p": 1}, {"top_k": 0},
                                 {"min_p": 0}, {"n": 1}, {"best_of": 1}, {"logit_bias": {}},
                                 {"stop": None}, {"echo": False}, {"stream": False},
                                 {"ignore_eos": False}, {"user": "somebody"}])
def test_neutral_values_change_nothing(http, off):
    assert text_of(http, **{**SEEDED, **off}) == text_of(http, **SEEDED)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}])
def test_narrowest_sampling_is_greedy(http, narrow):
    greedy = text_of(http, **GREEDY, max_tokens=30)
    assert text_of(http, prompt=PROMPT, temperature=1, max_tokens=30, **narrow) == greedy


@pytest.mark.parametrize("some", [{"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.2},
                                  {"temperature": 0.2}, {"temperature": 2}])
def test_sampling_parameters_matter(http, some):
    body = {**SEEDED, "max_tokens": 60}
    assert text_of(http, **{**body, **some}) != text_of(http, **body)
    assert text_of(http, **{**body, **some}) == text_of(http, **{**body, **some})


def test_top_k_keeps_the_k_most_probable(http):
    reply = complete(http, **SEEDED, max_tokens=60, top_k=3, logprobs=3)
    logprobs = reply["choices"][0]["logprobs"]
    for score, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"]):
        assert score >= sorted(top.values(), reverse=True)[2]


def test_eos_ends_the_reply_and_is_not_part_of_it(http):
    choice = complete(http, **GREEDY, max_tokens=9, logit_bias={str(EOS): 100})["choices"][0]
    assert choice["text"] == ""
    assert choice["finish_reason"] == "stop"


def test_ignore_eos(http):
    reply = complete(http, **GREEDY, max_tokens=9, logit_bias={str(EOS): 100}, ignore_eos=True)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 9


def test_token_id_prompt_is_the_text(http, tokenize):
    assert (text_of(http, **{**GREEDY, "prompt": tokenize(PROMPT)}, max_tokens=40)
            == text_of(http, **GREEDY, max_tokens=40))


def test_array_of_prompts(http):
    prompts = ["JULIET:", "KING HENRY:\nOnce more", PROMPT]
    body = {"temperature": 1, "seed": 3, "max_tokens": 25}
    reply = complete(http, **body, prompt=prompts, n=2)
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    for i, prompt in enumerate(prompts):
        alone = complete(http, **body, prompt=prompt, n=2)["choices"]
        for j in range(2):
            assert reply["choices"][2 * i + j]["text"] == alone[j]["text"]


def test_array_of_token_id_prompts(http, tokenize):
    prompts = ["JULIET:", PROMPT]
    body = {"temperature": 0, "max_tokens": 25}
    by_ids = complete(http, **body, prompt=[tokenize(prompt) for prompt in prompts])["choices"]
    by_text = complete(http, **body, prompt=prompts)["choices"]
    assert [choice["text"] for choice in by_ids] == [choice["text"] for choice in by_text]


def test_usage_of_an_array_is_the_sum(http, tokenize):
    prompts = ["JULIET:", PROMPT]
    usage = complete(http, prompt=prompts, max_tokens=5, ignore_eos=True)["usage"]
    assert usage["prompt_tokens"] == sum(len(tokenize(prompt)) for prompt in prompts)
    assert usage["completion_tokens"] == 10


def test_prefix_cache_changes_no_bytes(http):
    # Longer than a page, so that the second time its beginning comes from the cache.
    prompt = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 4
    body = {"prompt": prompt, "temperature": 1, "seed": 11, "max_tokens": 40, "logprobs": 2}
    first = complete(http, **body)["choices"]
    assert complete(http, **body)["choices"] == first
    longer = {**body, "prompt": prompt + "All:\n"}
    assert complete(http, **longer)["choices"] == complete(http, **longer)["choices"]


def test_a_prompt_that_fills_the_context(http, tokenize):
    (token,) = tokenize(",")
    reply = complete(http, prompt=[token] * (CONTEXT - 1), max_tokens=1, ignore_eos=True)
    assert reply["usage"]["total_tokens"] == CONTEXT


def test_a_reply_that_fills_the_context(http, tokenize):
    (token,) = tokenize(",")
    reply = complete(http, prompt=[token], max_tokens=CONTEXT - 1, temperature=0,
                     ignore_eos=True)
    assert reply["usage"]["total_tokens"] == CONTEXT


def test_one_token_too_many_is_refused_with_the_numbers(http, tokenize):
    (token,) = tokenize(",")
    error = refused(http, {"prompt": [token] * 200, "max_tokens": CONTEXT - 199})
    for number in (200, CONTEXT - 199, CONTEXT):
        assert str(number) in error["message"], error


def test_empty_prompt(http):
    """Either an error that names it or, where the model has a BOS to begin with, a reply."""
    reply = http.post("/v1/completions", json={"prompt": "", "max_tokens": 2})
    assert reply.status_code in (200, 400), reply.text
    if reply.status_code == 400:
        assert reply.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("text", ["é", "日本語", "🎭", "\u0001", "a\u0301", "\n\n\t ",
                                  "<|endoftext|>"])
def test_any_unicode_is_a_prompt(http, text):
    reply = complete(http, prompt=text, echo=True, max_tokens=1, temperature=0)
    assert reply["choices"][0]["text"].startswith(text)
