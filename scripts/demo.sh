#!/bin/bash
# Starts gptd on a free port, asks it for a few lines of a play, shows its memory, and ends it again
# (`make demo`).
set -eu
cd "$(dirname "$0")/.."
model=${1:-models/shakespeare}
prompt=${2:-"ROMEO:"}
log=$(mktemp)

build/gptd serve --model "$model" --host 127.0.0.1 --port 0 >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -f "$log"' EXIT

# The server's own line tells the port; /ready tells when the model is loaded.
url=""
for _ in $(seq 600); do
    url=$(grep -oE 'listening on http://[0-9.:]+' "$log" | head -n 1 | cut -d' ' -f3) || true
    [ -n "$url" ] && curl -sf --noproxy '*' -o /dev/null "$url/ready" && break
    kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.1
done
[ -n "$url" ] || { cat "$log" >&2; exit 1; }

body="{\"prompt\": \"$prompt\", \"max_tokens\": 120, \"temperature\": 0.8, \"seed\": 1}"
echo "\$ curl $url/v1/completions -H 'Content-Type: application/json' -d '$body'"
reply=$(curl -sS --fail-with-body --noproxy '*' "$url/v1/completions" \
             -H 'Content-Type: application/json' -d "$body") || { echo "$reply" >&2; exit 1; }
text=$(sed -nE 's/.*"text": ?"(([^"\\]|\\.)*)".*/\1/p' <<<"$reply" | sed 's/\\"/"/g')
printf '\n%s%b\n\n' "$prompt" "$text"

echo "\$ curl $url/v1/memory"
# Indented, one value a line; nothing that has to be installed can do it everywhere.
curl -sSf --noproxy '*' "$url/v1/memory" | awk '
    function line() { printf "\n%*s", 2 * depth, "" }
    { for (i = 1; i <= length($0); i++) {
          c = substr($0, i, 1)
          if (c == "\"") quoted = !quoted
          if (quoted) printf "%s", c
          else if (c == "{" || c == "[") { printf "%s", c; depth++; line() }
          else if (c == "}" || c == "]") { depth--; line(); printf "%s", c }
          else if (c == ",") { printf ","; line() }
          else if (c == ":") printf ": "
          else if (c != " " && c != "\n" && c != "\t") printf "%s", c
      } }
    END { print "" }'
