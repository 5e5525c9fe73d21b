#!/bin/bash
# Replays each fuzz target's corpus, then fuzzes it for SECONDS (first argument, default 15). A
# target is tests/fuzz/fuzz_NAME.c, its corpus tests/fuzz/corpus/NAME/. What is found grows in
# build/fuzzer/corpus/, what crashes is kept in build/fuzzer/crashes/. Prints TAP lines.
set -u
cd "$(dirname "$0")/.."
seconds=${1:-15}
failed=0
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
        failed=1
    fi
}

found=0
for target in build/fuzzer/tests/fuzz/fuzz_*; do
    [ -x "$target" ] && [[ $target != *.* ]] || continue
    found=1
    name=${target##*/fuzz_}
    seeds=tests/fuzz/corpus/$name
    grown=build/fuzzer/corpus/$name
    mkdir -p "$grown"
    limits=(-timeout=20 -rss_limit_mb=3072 -max_len=65536 -print_final_stats=1
            -artifact_prefix="build/fuzzer/crashes/$name-")
    if [ -d "$seeds" ]; then
        check "fuzz $name corpus" "$target" "${limits[@]}" -runs=0 "$seeds"
        check "fuzz $name ${seconds}s" "$target" "${limits[@]}" -max_total_time="$seconds" \
              "$grown" "$seeds"
    else
        echo "not ok - fuzz $name: no corpus in $seeds"
        failed=1
    fi
done
if [ "$found" = 0 ]; then
    echo "not ok - fuzz: no targets built"
    failed=1
fi
exit "$failed"
