#!/bin/sh
# Checks that includes follow the arrows: server -> api -> model -> model/device.h <- cpu, cuda, and
# base under all. Prints each include that does not; one TAP line at the end.
set -eu

# allowed FOLDER PATTERN: FOLDER's files may include what PATTERN (of grep -E) matches.
bad=""
allowed() {
    found=$(grep -nE '^ *# *include *"' "$1" -r --include="*.[ch]" | grep -vE "\"($2)\"" || true)
    [ -z "$found" ] || bad="$bad$found
"
}

allowed base   'base/[a-z0-9_]+\.h'
allowed model  '(base|model)/[a-z0-9_]+\.h'
allowed cpu    '(base|cpu)/[a-z0-9_]+\.(h|inc)|model/(device|device_train|dtype|normal|sampler)\.h'
allowed cuda   '(base|cuda)/[a-z0-9_]+\.h|model/(device|device_train|dtype|sampler)\.h'
allowed api    '(base|model|api)/[a-z0-9_]+\.h'
allowed server '(base|model|cpu|cuda|api|server)/[a-z0-9_]+\.(h|inc)'

if [ -n "$bad" ]; then
    printf '%s' "$bad" | sed 's/^/# not an arrow: /'
    echo "not ok - layers"
    exit 1
fi
echo "ok - layers"
