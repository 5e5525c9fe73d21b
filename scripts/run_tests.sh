#!/bin/bash
# Everything that must hold, in trees built one after another (`make test`):
#
#   layers    includes follow the arrows
#   release   all C tests; the black-box tests against build/gptd, with the official clients
#   ptxsim    where nvcc is: the CUDA device on an interpreter of its PTX, against the CPU's; the
#             same objects linked for GPUs, on a machine without one. The other trees are built
#             without CUDA
#   address   all C tests under ASan and UBSan; the concurrency tests against that server
#   thread    the C tests where threads meet, under TSan; the concurrency tests again
#   fuzzer    clang's build: corpora replayed, then a short run of each target
#
# Every check prints TAP ("ok", "not ok") or pytest's summary; whole logs lie in build/test-logs/.
# The last line is "N passed, N failed"; the exit status says whether N failed is 0.
set -u
cd "$(dirname "$0")/.."
logs=build/test-logs
python=build/venv/bin/python
jobs=${JOBS:-2}
passed=0
failed=0
rm -rf "$logs" && mkdir -p "$logs"

export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=0:second_deadlock_stack=1
# TSan's shadow cannot be mapped on kernels that randomize addresses widely.
fixed_addresses=""
setarch -R true 2>/dev/null && fixed_addresses="setarch -R"

say() { printf '\n== %s (%ds)\n' "$*" "$SECONDS"; }

# fail NAME LOG: one more failure, with the end of what it said.
fail() {
    failed=$((failed + 1))
    echo "not ok - $1"
    tail -n 60 "$2" | sed 's/^/    # /'
}

# build TREE TARGET...: a failed build is one failed check, and its tests do not run.
build() {
    local tree=$1 log="$logs/build-$1.log" san=()
    shift
    [ "$tree" = release ] || san=("SAN=$tree")
    if make --no-print-directory -j"$jobs" CUDA=0 "${san[@]}" "$@" >"$log" 2>&1; then return 0; fi
    fail "build $tree" "$log"
    return 1
}

# count_tap NAME LOG STATUS: adds the log's "ok" and "not ok" lines; a program that ended badly, or
# that checked nothing, without saying which check failed, is one failure.
count_tap() {
    local ok bad skipped
    ok=$(grep -cE '^ok ' "$2")
    bad=$(grep -E '^not ok ' "$2" | grep -vc '# SKIP') # cmocka's word for a skipped one
    skipped=$(grep -cE '^not ok .*# SKIP' "$2")
    passed=$((passed + ok))
    failed=$((failed + bad))
    if [ "$bad" = 0 ] && { [ "$3" != 0 ] || [ $((ok + skipped)) = 0 ]; }; then
        fail "$1 (exit status $3, $ok checks passed)" "$2"
    elif [ "$bad" != 0 ]; then
        echo "not ok - $1: $bad failed"
        grep -vE '^ok ' "$2" | tail -n 60 | sed 's/^/    # /'
    fi
}

# run_unit LOG PREFIX PROGRAM: leaves what it says in LOG, its exit status and seconds beside it.
run_unit() {
    local begin=$SECONDS
    CMOCKA_MESSAGE_OUTPUT=TAP $2 timeout 300 "$3" >"$1" 2>&1
    echo "$? $((SECONDS - begin))" >"$1.status"
}

# unit TREE PREFIX PROGRAM...: cmocka programs, as many at a time as there are jobs,
# from the root of the tree.
unit() {
    local tree=$1 prefix=$2 program name log status seconds
    shift 2
    for program in "$@"; do
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
        run_unit "$logs/$tree-$(basename "$program").log" "$prefix" "$program" &
    done
    wait
    for program in "$@"; do
        name=$tree-$(basename "$program")
        log=$logs/$name.log
        read -r status seconds <"$log.status"
        count_tap "$name" "$log" "$status"
        [ "$seconds" -lt 10 ] || echo "$name took $seconds s"
    done
}

# count_in LINE WORD: the number before the word in pytest's last line, or 0.
count_in() { echo "$1" | grep -oE "[0-9]+ ($2)\b" | grep -oE '[0-9]+' || echo 0; }

# black_box TREE BINARY ARGUMENT...: pytest against servers that it starts from BINARY, as many
# files at a time as there are jobs. What failed is said first, then why.
black_box() {
    local tree=$1 binary=$2 log="$logs/pytest-$1.log" status line
    shift 2
    GPTD_BINARY=$binary timeout 900 "$python" -m pytest -q -ra -n "$jobs" --dist loadfile \
        --durations=5 "$@" >"$log" 2>&1
    status=$?
    line=$(tail -n 1 "$log")
    local ok bad
    ok=$(count_in "$line" passed)
    bad=$(($(count_in "$line" failed) + $(count_in "$line" 'errors?')))
    passed=$((passed + ok))
    failed=$((failed + bad))
    if [ "$bad" != 0 ]; then
        echo "not ok - black-box $tree: $line"
        { grep -E '^(FAILED|ERROR) ' "$log"; tail -n 120 "$log"; } | sed 's/^/    # /'
    elif [ "$status" != 0 ]; then
        fail "black-box $tree (exit status $status)" "$log"
    else
        echo "$line"
    fi
}

programs() { make --no-print-directory -s SAN="$1" "print-$2"; }

# What is worth repeating against the sanitizers' servers.
rough="tests/http/test_concurrency.py tests/http/test_disconnects.py tests/http/test_shutdown.py"

say layers
scripts/check_layers.sh >"$logs/layers.log"
count_tap layers "$logs/layers.log" $?

say "release: build"
if build release all tests; then
    say "release: C tests"
    unit release "" $(programs "" TEST_BINS)
    say "release: black-box tests"
    black_box release build/gptd tests/http tests/cli
fi

# The CUDA device's kernels on an interpreter, where there is a compiler for them.
if [ -x "$(make --no-print-directory -s print-NVCC)" ]; then
    say "CUDA without a GPU: build"
    if build release sim-tests; then
        say "CUDA without a GPU: tests"
        unit ptxsim "" $(programs "" SIM_TESTS)
        black_box ptxsim build/ptxsim/gptd tests/cuda
    fi
fi

say "address: build"
if build address all tests; then
    say "address: C tests"
    unit address "" $(programs address TEST_BINS)
    say "address: black-box tests"
    black_box address build/address/gptd $rough
fi

say "thread: build"
if build thread all threaded-tests; then
    say "thread: C tests"
    unit thread "$fixed_addresses" $(programs thread THREADED_TEST_BINS)
    say "thread: black-box tests"
    black_box thread build/thread/gptd $rough
fi

say "fuzzer: build"
if build fuzzer fuzz-targets; then
    say "fuzzer: corpora and ${FUZZ_SECONDS:-15} s a target"
    JOBS=$jobs scripts/fuzz.sh "${FUZZ_SECONDS:-15}" >"$logs/fuzz.log" 2>&1
    count_tap fuzz "$logs/fuzz.log" $?
fi

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
