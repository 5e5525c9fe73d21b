#!/bin/sh
# Serves MODEL on 127.0.0.1:PORT until Ctrl-C, and says what to type meanwhile (`make run`).
set -eu
cd "$(dirname "$0")/.."
model=${1:-models/shakespeare}
port=${2:-8080}
cat <<END
gptd will answer on http://127.0.0.1:$port. From another terminal, try

    curl http://127.0.0.1:$port/v1/completions -H 'Content-Type: application/json' \\
         -d '{"prompt": "ROMEO:", "max_tokens": 100, "temperature": 0.8, "seed": 1}'

Ctrl-C ends it.

END
exec build/gptd serve --model "$model" --host 127.0.0.1 --port "$port"
