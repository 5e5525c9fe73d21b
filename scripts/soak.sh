#!/bin/bash
# Hours of mixed clients against a real server; ends with 1 unless all that they share stayed flat:
#
#   scripts/soak.sh                     ten minutes
#   scripts/soak.sh --minutes 480       a night
#   GPTD_BINARY=build/address/gptd scripts/soak.sh --minutes 5    with leaks looked for as well
#
# scripts/soak.py says what the clients do and what is required. `make setup-test` installs what it
# needs; the short form of it is a test (tests/http/test_soak.py).
set -eu
cd "$(dirname "$0")/.."
make --no-print-directory all build/venv/ready >&2
PYTHONPATH=tests exec build/venv/bin/python scripts/soak.py "$@"
