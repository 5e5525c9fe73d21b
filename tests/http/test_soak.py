"""The short form of scripts/soak.sh: mixed clients for half a minute, after which the server has
what it had: pages, descriptors, threads, memory."""

import sys

from gptd import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import soak  # noqa: E402

ROUNDS, ROUND_SECONDS = 3, 10


def test_all_stays_flat():
    assert soak.run(ROUNDS * ROUND_SECONDS, ROUND_SECONDS) == []


def test_what_is_not_flat_is_seen():
    sample = {"rss_bytes": 50 << 20, "unexplained_bytes": 0, "pages_used": 0, "pages_reserved": 0,
              "descriptors": 12, "threads": 13, "jobs": 1}
    assert soak.differences(sample, {**sample, "rss_bytes": 51 << 20, "jobs": 2}) == []
    for name, value in (("pages_used", 1), ("pages_reserved", 1), ("descriptors", 13),
                        ("threads", 12)):
        (line,) = soak.differences(sample, {**sample, name: value})
        assert name in line
    if not soak.gptd.SANITIZED:
        (line,) = soak.differences(sample, {**sample, "unexplained_bytes": 7 << 20})
        assert "unexplained_bytes" in line
