#!/bin/bash
# Replays each fuzz target's corpus, then fuzzes it for SECONDS (first argument, default 15). A
# target is tests/fuzz/fuzz_NAME.c, its corpus tests/fuzz/corpus/NAME/. What is found grows in
# build/fuzzer/corpus/, what crashes is kept in build/fuzzer/crashes/. JOBS targets (default
# 2) run at a time. Prints TAP lines.
set -u
cd "$(dirname "$0")/.."
seconds=${1:-15}
jobs=${JOBS:-2}
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=1}
mkdir -p build/fuzzer/crashes build/fuzzer/logs

# check NAME COMMAND...: one TAP line; the log's end when it fails.
check() {
    local name=$1 log="build/fuzzer/logs/${1// /-}.log"
    shift
    if "$@" >"$log" 2>&1; then
        echo "ok - $name"
    else
        echo "not ok - $name (exit $?)"
        tail -n 40 "$log" | sed 's/^/# /'
    fi
}

# fuzz TARGET: its TAP lines.
fuzz() {
    local name=${1##*/fuzz_}
    local seeds=tests/fuzz/corpus/$name grown=build/fuzzer/corpus/$name
    local limits=(-timeout=20 -rss_limit_mb=3072 -max_len=65536 -print_final_stats=1
                  -artifact_prefix="build/fuzzer/crashes/$name-")
    mkdir -p "$grown"
    if [ -d "$seeds" ]; then
        check "fuzz $name corpus" "$1" "${limits[@]}" -runs=0 "$seeds"
        check "fuzz $name ${seconds}s" "$1" "${limits[@]}" -max_total_time="$seconds" \
              "$grown" "$seeds"
    else
        echo "not ok - fuzz $name: no corpus in $seeds"
    fi
}

said=()
for target in build/fuzzer/tests/fuzz/fuzz_*; do
    [ -x "$target" ] && [[ $target != *.* ]] || continue
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    said+=("build/fuzzer/logs/${target##*/}.tap")
    fuzz "$target" >"${said[-1]}" &
done
wait
if [ "${#said[@]}" = 0 ]; then
    echo "not ok - fuzz: no targets built"
    exit 1
fi
cat "${said[@]}"
! grep -q '^not ok' "${said[@]}"
