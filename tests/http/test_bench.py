"""The benches run, and the open one charges a server that stood still with everyone who came."""

import json
import signal
import subprocess
import sys
import threading

from gptd import CONTEXT, PATIENCE, ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import bench_open  # noqa: E402


def bench(script, server, *options):
    done = subprocess.run([sys.executable, ROOT / "scripts" / script, "--url", server.url, "--json",
                           "-", *map(str, options)], capture_output=True, text=True,
                          timeout=60 * PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_closed(server):
    result = bench("bench.py", server, "--runs", 1, "--context", CONTEXT)
    assert [row["clients"] for row in result["clients"]] == [1, 4, 16]
    assert all(row["total_tokens_per_s"] > 0 for row in result["clients"])
    assert result["overhead"]["health_round_trip_ms"] > 0


def test_open(server):
    result = bench("bench_open.py", server, "--rates", 10, "--seconds", 2, "--tokens", 8)
    (row,) = result["rates"]
    assert row["requests"] == row["finished"] > 0 == row["refused"] == row["failed"]
    for figures in (row["first_token"], row["inter_token"]):
        assert 0 <= figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert row["first_token"]["p50_ms"] > 0


def test_a_pause_is_charged_to_all_who_came_in_it(server):
    """Requests 20 ms apart, and a server that stands still for the second half of a second: those
    that were to come at its beginning wait for half a second, those at its end hardly at all."""
    target = bench_open.Target(server.url, 0, 1000, False)
    pause = threading.Timer(0.6, server.process.send_signal, [signal.SIGSTOP])
    go_on = threading.Timer(1.1, server.process.send_signal, [signal.SIGCONT])
    pause.start()
    go_on.start()
    done = bench_open.run_schedule(target, [i / 50 for i in range(50)], 4, 2)
    pause.join()
    go_on.join()
    assert [arrival.outcome for arrival in done] == ["finished"] * 50
    waits = [arrival.times[0] - arrival.begin for arrival in done]
    assert sum(wait > 0.1 for wait in waits) >= 15
    assert max(waits) > 0.4


def test_arrivals():
    """Poisson: as many as the rate says, and as uneven as chance is."""
    at = list(bench_open.arrivals(100, 100, bench_open.random.Random(5)))
    gaps = [after - before for before, after in zip(at, at[1:])]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert abs(mean * 100 - 1) < 0.05 and abs(deviation * 100 - 1) < 0.05
    assert at == sorted(at) and 0 < at[0] and at[-1] < 100
