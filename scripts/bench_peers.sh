#!/bin/bash
# gptd beside others on the same machine, in one go, taking turns, so that all meet the same
# weather. Builds nothing:
#
#     scripts/bench_peers.sh LLAMA_BENCH LLAMA_SERVER MODEL.gguf [GPTD_MODEL] [ROUNDS]
#     scripts/bench_peers.sh train LLMC_TRAIN_GPT2 [PYTHON_WITH_TORCH] [ROUNDS]
#
# The first compares serving with llama.cpp: GPTD_MODEL (default the same file) is for comparing a
# Hugging Face directory with its GGUF. Every round runs llama-bench, then each server with the same
# streaming clients; the table shows medians over the rounds and the ratio gptd / llama.cpp. The
# second compares training GPT-2 124M with llm.c's train_gpt2 (built with
# `gcc -Ofast -march=native -fopenmp train_gpt2.c -lm`) and with torch: see scripts/bench_train.py.
# THREADS (default all cores) is what each gets.
set -eu
usage() { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
if [ "${1:-}" = train ]; then
    [ $# -ge 2 ] || usage
    exec python3 "$(dirname "$0")/bench_train.py" --llmc "$2" ${3:+--torch "$3"} \
        --rounds "${4:-3}" --threads "${THREADS:-$(nproc)}"
fi
cd "$(dirname "$0")/.."
[ $# -ge 3 ] || usage
llama_bench=$1 llama_server=$2 model=$3 gptd_model=${4:-$3} rounds=${5:-5}
threads=${THREADS:-$(nproc)}
out=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$out"' EXIT

port=$(python3 -c '
import socket
s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])')

for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    python3 scripts/bench.py --model "$gptd_model" --runs 1 --json - -- --threads "$threads" \
        >"$out/gptd-$round.json"
    "$llama_bench" -m "$model" -t "$threads" -ngl 0 -p 512 -n 128 -r 1 -o json \
        >"$out/bench-$round.json" 2>"$out/log"
    "$llama_server" -m "$model" -t "$threads" -ngl 0 -np 16 -c 16384 --host 127.0.0.1 \
        --port "$port" >"$out/log" 2>&1 &
    server=$!
    for _ in $(seq 600); do
        curl -sf --noproxy '*' -o /dev/null "http://127.0.0.1:$port/health" && break
        kill -0 "$server" || { cat "$out/log" >&2; exit 1; }
        sleep 0.1
    done
    python3 scripts/bench.py --url "http://127.0.0.1:$port" --context 1024 --runs 1 --json - \
        >"$out/server-$round.json"
    kill "$server"
    wait "$server" 2>/dev/null || true
    server=""
done

python3 - "$out" "$rounds" <<'EOF_PYTHON'
import json
import statistics
import sys
from pathlib import Path

folder, rounds = Path(sys.argv[1]), range(1, int(sys.argv[2]) + 1)


def load(name):
    return [json.loads((folder / f"{name}-{i}.json").read_text()) for i in rounds]


gptd, bench, server = load("gptd"), load("bench"), load("server")
prompt = [next(row["avg_ts"] for row in run if row["n_gen"] == 0) for run in bench]
decode = [next(row["avg_ts"] for row in run if row["n_prompt"] == 0) for run in bench]
rows = [("prompt, tok/s (llama-bench)", [run["prompt"]["tokens_per_s"] for run in gptd], prompt),
        ("decode, tok/s (llama-bench)",
         [run["clients"][0]["decode_tokens_per_s"] for run in gptd], decode),
        ("prompt, tok/s (llama-server)", [run["prompt"]["tokens_per_s"] for run in gptd],
         [run["prompt"]["tokens_per_s"] for run in server])]
for i, n in enumerate((1, 4, 16)):
    for key, what in (("total_tokens_per_s", "total tok/s"),
                      ("inter_token_p50_ms", "between tokens p50, ms"),
                      ("first_token_p50_ms", "first token p50, ms")):
        rows.append((f"{n} clients, {what}", [run["clients"][i][key] for run in gptd],
                     [run["clients"][i][key] for run in server]))
print(f"{'':38}{'gptd':>12}{'llama.cpp':>12}{'ratio':>9}")
for name, ours, theirs in rows:
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"{name:38}{a:12.2f}{b:12.2f}{a / b:9.2f}")
EOF_PYTHON
