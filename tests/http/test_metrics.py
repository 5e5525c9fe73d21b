"""GET /metrics: Prometheus text, and counters that count."""

from prometheus_client.parser import text_string_to_metric_families

from gptd import complete, refused, stream


def scrape(http):
    reply = http.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")
    return list(text_string_to_metric_families(reply.text))


def values(http):
    """Sample name and labels -> value."""
    return {(sample.name, *sorted(sample.labels.items())): sample.value
            for family in scrape(http) for sample in family.samples}


def test_every_metric_is_described(http):
    families = scrape(http)
    assert len(families) > 10
    for family in families:
        assert family.name.startswith(("gptd_", "process_")), family.name
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name


def test_histograms_are_cumulative(http):
    complete(http, prompt="A", max_tokens=4)
    histograms = [family for family in scrape(http) if family.type == "histogram"]
    assert histograms
    for family in histograms:
        buckets = [(float(s.labels["le"]), s.value) for s in family.samples
                   if s.name.endswith("_bucket")]
        counts = [s.value for s in family.samples if s.name.endswith("_count")]
        assert counts
        if len(counts) == 1:
            assert [le for le, _ in buckets] == sorted(le for le, _ in buckets)
            assert [n for _, n in buckets] == sorted(n for _, n in buckets)
            assert buckets[-1] == (float("inf"), counts[0])


def test_tokens_are_counted(http):
    before = values(http)
    usage = complete(http, prompt="To be or not to be", max_tokens=9, ignore_eos=True)["usage"]
    after = values(http)

    def moved(name):
        return sum(after[key] - before.get(key, 0) for key in after if key[0] == name)

    assert moved("gptd_completion_tokens_total") == usage["completion_tokens"]
    assert moved("gptd_prompt_tokens_total") == usage["prompt_tokens"]


def test_requests_are_counted_by_status(http):
    before = values(http)
    complete(http, prompt="A", max_tokens=1)
    stream(http, prompt="A", max_tokens=1)
    refused(http, {"prompt": 5})
    after = values(http)
    changed = {key: after[key] - before.get(key, 0) for key in after
               if key[0].startswith("gptd_") and "requests_total" in key[0]}
    assert sum(changed.values()) >= 3


def test_pages_are_shown(http):
    assert any("kv_pages" in key[0] for key in values(http))
