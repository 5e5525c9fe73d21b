#!/usr/bin/env python3
"""Measures training: tokens a second of each preset, and of GPT-2 124M beside llm.c and torch.

    bench_train.py [--presets tiny_char,small | all] [--dtypes bf16,f32] [--json out.json]
    bench_train.py --llmc path/to/train_gpt2 [--torch path/to/python] [--rounds 3]

Every figure is the median over steps, the first one aside. A step of a preset is cut to --tokens
tokens, so that a large one takes seconds: whole steps are a little faster, as they share one update
of the weights among more tokens. The text is made of random words; nothing is written to keep.

With peers, GPT-2 124M (B 4, T 64: llm.c's own settings) takes --steps steps in each program in
turn, --rounds times, so that all meet the same weather; the table shows medians and the ratios to
gptd in both arithmetics, by time and by CPU time: the latter says more where other work shares the
machine, and with one thread (with more, threads that wait for others count too). llm.c is f32 and
takes its weights from a file, which is written here with random ones. Standard library only; torch
runs scripts/bench_train_torch.py.
"""

import argparse
import array
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"step \d+/.* ([\d.]+) ms/step +([\d.]+) GFLOP/s .*?(\d+) MiB")
DEFAULT_PRESETS = "tiny_char,small_char,tiny,small,150M"
# GPT-2's smallest, in gptd's words.
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257,
        "dropout": 0.0, "bias": True, "tie_weights": True}
BATCH, SEQUENCE = 4, 64


def write_text(path):
    """300 kB of random words in lines, a character each for 65 characters."""
    dice = random.Random(0)
    letters = "".join(chr(c) for c in range(33, 97))
    words = ["".join(dice.choices(letters, k=dice.randint(1, 9))) for _ in range(5000)]
    lines = (" ".join(dice.choices(words, k=10)) for _ in range(5000))
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def lines_until(process, enough):
    """The process's lines, until enough(line) was true; then it is ended, with what it did."""
    seen = []
    try:
        for line in process.stdout:
            seen.append(line)
            if enough(line):
                return
        raise SystemExit(f"bench_train: {process.args[0]} ended early:\n{''.join(seen[-20:])}")
    finally:
        process.kill()
        process.wait()


def cpu_ms(pid):
    """The time that all threads of a process have had from the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e3 / os.sysconf("SC_CLK_TCK")


def measure(command, pattern, steps, **popen):
    """What `pattern` finds on the lines of steps 2 .. steps + 1, and the CPU time of each."""
    found, cpu = [], []
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                               errors="replace", **popen)

    def enough(line):
        match = pattern.search(line)
        if match:
            found.append([float(value) for value in match.groups()])
            cpu.append(cpu_ms(process.pid))
        return len(found) > steps

    lines_until(process, enough)
    return [[*row, after - before] for row, before, after in zip(found[1:], cpu, cpu[1:])]


def train(arguments, folder, config, dtype, batch, sequence, steps):
    """Steps of gptd: {"ms", "tokens_per_s", "gflop_per_s", "memory_mib", "cpu_ms"}."""
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    command = [arguments.binary, "train", "--config", config, "--model-name", "bench", "--input",
               text, "--out-dir", folder, "--overwrite", "--dtype", dtype, "--batch-size", batch,
               "--grad-accum-steps", 1, "--sequence-length", sequence, "--max-iters", 1000000,
               "--warmup-iters", 1, "--eval-interval", 0, "--save-interval", 0, "--log-interval", 1,
               "--threads", arguments.threads, *arguments.more]
    rows = measure(command, LINE, steps)
    ms, gflops, mib, cpu = (statistics.median(column) for column in zip(*rows))
    return {"ms": ms, "tokens_per_s": 1e3 * batch * sequence / ms, "gflop_per_s": gflops,
            "memory_mib": mib, "cpu_ms": cpu}


def bench_presets(arguments, folder):
    names = sorted(p.stem for p in (ROOT / "configs").glob("*.json"))
    if arguments.presets != "all":
        names = arguments.presets.split(",")
    print(f"{'preset':12}{'dtype':>6}{'tokens/step':>13}{'ms/step':>11}{'tokens/s':>11}"
          f"{'GFLOP/s':>10}{'planned MiB':>13}")
    rows = []
    for name in names:
        path = ROOT / "configs" / f"{name}.json"
        keys = json.loads(path.read_text())
        sequence = keys["block_size"]
        batch = max(1, min(keys["batch_size"], arguments.tokens // sequence))
        for dtype in arguments.dtypes.split(","):
            row = {"preset": name, "dtype": dtype, "tokens": batch * sequence,
                   **train(arguments, folder, path, dtype, batch, sequence, arguments.steps)}
            rows.append(row)
            print(f"{name:12}{dtype:>6}{row['tokens']:13}{row['ms']:11.1f}"
                  f"{row['tokens_per_s']:11.0f}{row['gflop_per_s']:10.1f}"
                  f"{row['memory_mib']:13.0f}", flush=True)
    return rows


def write_llmc_files(folder):
    """What train_gpt2 reads: a model of version 3 (f32, vocabulary padded to a multiple of 128) and
    two files of tokens."""
    dice = random.Random(0)
    noise = array.array("f", (dice.gauss(0, 0.02) for _ in range(1 << 16)))
    L, C, T, V, padded = 12, 768, 1024, 50257, 50304
    sizes = [(padded * C, noise), (T * C, noise)]
    for size, what in ((C, 1), (C, 0), (3 * C * C, noise), (3 * C, 0), (C * C, noise), (C, 0),
                       (C, 1), (C, 0), (4 * C * C, noise), (4 * C, 0), (4 * C * C, noise), (C, 0)):
        sizes.append((L * size, what))
    sizes += [(C, 1), (C, 0)]
    with open(folder / "gpt2_124M.bin", "wb") as out:
        out.write(array.array("i", [20240326, 3, T, V, L, 12, C, padded] + [0] * 248).tobytes())
        for size, what in sizes:
            block = noise if what is noise else array.array("f", [what] * (1 << 16))
            for begin in range(0, size, len(block)):
                out.write(block[:size - begin].tobytes())
    tokens = folder / "dev/data/tinyshakespeare"
    tokens.mkdir(parents=True)
    n = 1 << 16
    for name in "train", "val":
        with open(tokens / f"tiny_shakespeare_{name}.bin", "wb") as out:
            out.write(array.array("i", [20240520, 1, n] + [0] * 253).tobytes())
            out.write(array.array("H", (dice.randrange(V) for _ in range(n))).tobytes())


def peer(command, steps, **popen):
    """Steps of another program, each of which says "took N ms": {"ms", "cpu_ms"}."""
    rows = measure(command, re.compile(r"took ([\d.]+) ms"), steps, **popen)
    ms, cpu = (statistics.median(column) for column in zip(*rows))
    return {"ms": ms, "cpu_ms": cpu}


def peers(arguments, folder):
    """{program: a function that runs it once}."""
    config = folder / "gpt2.json"
    config.write_text(json.dumps(GPT2))
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    programs = {f"gptd {dtype}": lambda dtype=dtype: train(
        arguments, folder, config, dtype, BATCH, SEQUENCE, arguments.steps)
        for dtype in ("f32", "bf16")}
    if arguments.llmc:
        write_llmc_files(folder)
        programs["llm.c f32"] = lambda: peer(["stdbuf", "-oL", Path(arguments.llmc).resolve()],
                                             arguments.steps, cwd=folder, env=environment)
    if arguments.torch:
        for dtype in "f32", "bf16":
            programs[f"torch {dtype}"] = lambda dtype=dtype: peer(
                [arguments.torch, ROOT / "scripts/bench_train_torch.py", "--dtype", dtype,
                 "--threads", arguments.threads], arguments.steps, env=environment)
    return programs


def bench_peers(arguments, folder):
    """{program: [the figures of each round]}."""
    programs = peers(arguments, folder)
    rounds = {name: [] for name in programs}
    for i in range(arguments.rounds):
        print(f"round {i + 1} of {arguments.rounds}", file=sys.stderr)
        for name, program in programs.items():
            rounds[name].append(program())
    print(f"GPT-2 124M, B {BATCH}, T {SEQUENCE}, {arguments.threads} threads, medians of "
          f"{arguments.rounds} rounds\n{'':12}{'ms/step':>10}{'tokens/s':>10}{'CPU ms/step':>13}"
          "    x gptd f32    x gptd bf16  (CPU)")
    median = {name: {key: statistics.median(r[key] for r in rows) for key in ("ms", "cpu_ms")}
              for name, rows in rounds.items()}
    for name, row in median.items():
        line = (f"{name:12}{row['ms']:10.1f}{1e3 * BATCH * SEQUENCE / row['ms']:10.1f}"
                f"{row['cpu_ms']:13.0f}")
        for ours in median["gptd f32"], median["gptd bf16"]:
            line += f"{row['ms'] / ours['ms']:8.2f} ({row['cpu_ms'] / ours['cpu_ms']:5.2f})"
        print(line)
    return rounds


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", default=DEFAULT_PRESETS, help=f"or all ({DEFAULT_PRESETS})")
    parser.add_argument("--dtypes", default="bf16,f32")
    parser.add_argument("--steps", type=int, default=5, help="measured, after one that is not (5)")
    parser.add_argument("--tokens", type=int, default=2048, help="of a step, at most (2048)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--binary", default=str(ROOT / "build" / "gptd"))
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--llmc", metavar="FILE", help="llm.c's train_gpt2, built")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has torch")
    parser.add_argument("--rounds", type=int, default=3, help="with peers (3)")
    parser.add_argument("more", nargs="*", help="options of gptd train, after --")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what runs, too
    with tempfile.TemporaryDirectory() as folder:
        bench = bench_peers if arguments.llmc or arguments.torch else bench_presets
        result = bench(arguments, Path(folder))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
