#!/bin/bash
# Proves and measures the CUDA device on the GPU of this machine, in under eight minutes:
#
#     scripts/gpu_check.sh [--out DIR] [--quick] [--only SECTION] [--seconds N]
#
# Needs nvcc and a C compiler, no library and no network: scripts/bare stands for those that gptd
# has. Where python3 has torch, its numbers and its speed stand beside gptd's. Results appear as
# they are known, and lie in DIR (build/gpu_check/out) as results.txt and results.json after every
# step, with every log in log.txt and what profilers said in profile.txt. A section that
# fails, or that takes longer than it may, is reported with its last lines; the others go
# on. Tests that fail are run again one by one, kernels waited for, and under
# compute-sanitizer. Exit status: 1 if any failed.
#
#   build tests parity sanitizer rates decode prefill train profile torch
#
# --quick: correctness alone. --seconds: for everything (470).
# Without a GPU, to try the script itself, with shapes so small that no figure means anything:
#   --simulate     the device is tests/ptxsim, which interprets the kernels (make sim-tests first)
#   --device cpu   the CPU, and no nvcc
set -u
cd "$(dirname "$0")/.."
out=build/gpu_check/out device=cuda:0 mode=gpu quick=0 only="" budget=470
usage() { sed -n '2,/^set -u/p' scripts/gpu_check.sh | sed '$d; s/^# \{0,1\}//'; exit "$1"; }
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?}; shift ;;
    --only) only=${2:?}; shift ;;
    --seconds) budget=${2:?}; shift ;;
    --quick) quick=1 ;;
    --simulate) mode=simulate ;;
    --device) [ "${2:?}" = cpu ] && mode=cpu; device=$2; shift ;;
    --help) usage 0 ;;
    *) echo "gpu_check: unknown option $1" >&2; usage 2 >&2 ;;
    esac
    shift
done
# The toolkit: CUDA_HOME's, nvcc's own, or the newest that lies where they are installed.
nvcc=$(readlink -f "$(command -v nvcc)" 2>/dev/null)
[ -n "$nvcc" ] ||
    nvcc=$(ls -d /usr/local/cuda/bin/nvcc /usr/local/cuda-*/bin/nvcc 2>/dev/null |
           sort -V | tail -n 1)
export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "${nvcc:-/usr/local/cuda/bin/nvcc}")")}
work=build/gpu_check/$mode
jobs=$(nproc)
small="" slower=1
[ $mode = gpu ] || small=--small
[ $mode != simulate ] || { slower=5 budget=$((budget * 5)); }
mkdir -p "$out" "$work"
: >"$out/results.tsv" && : >"$out/log.txt" && : >"$out/profile.txt"
failed=() profiling=0

# ---- sections ----

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

show() { # results, as lines of a table
    awk -F'\t' '$1 == "RESULT" {
        printf "%-8s %-50s %12s %-8s %s\n", $2, $3, $4 == 0 && $5 == "" ? "" : $4, $5, $6
        fflush() }'
}

result() { # SECTION NAME VALUE UNIT NOTE
    printf 'RESULT\t%s\t%s\t%s\t%s\t%s\n' "$@" | tee -a "$out/results.tsv" | show
}

fail() { # NAME WHY LOG
    failed+=("$1")
    result check "$1" 0 FAILED "$2"
    [ -z "$3" ] || tail -n 15 "$3" | sed 's/^/    # /'
}

wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }

# step NAME SECONDS COMMAND...: runs it within its time and what is left of all; its RESULT lines
# are results. Leaves its status in `status` and its output in $work/step.log.
step() {
    local name=$1 limit=$(($2 * slower)) left=$((budget - SECONDS)) to=$out/results.tsv
    [ "$profiling" = 0 ] || to=/dev/null # under a profiler nothing is as fast as it is
    shift 2
    status=1
    [ "$left" -lt "$limit" ] && limit=$left
    if [ "$limit" -lt 3 ]; then
        fail "$name" "no time was left for it" ""
        return 1
    fi
    printf '\n### %s: %s\n' "$name" "$*" >>"$out/log.txt"
    : >"$work/step.log"
    # No pipe: what a killed command leaves behind, stuck in the driver, must not hold us.
    timeout -k 5 "$limit" "$@" >"$work/step.log" 2>&1 </dev/null &
    local pid=$!
    timeout $((limit + 20)) tail -n +1 -s 0.2 -f --pid=$pid "$work/step.log" \
        | grep --line-buffered '^RESULT' | tee -a "$to" | show
    # Nor must one that is there even after it was killed: it is left behind.
    if kill -0 $pid 2>/dev/null; then
        status=137
    else
        wait $pid
        status=$?
    fi
    cat "$work/step.log" >>"$out/log.txt"
    case $status in
    0) ;;
    124 | 137) fail "$name" "took longer than $limit s" "$work/step.log" ;;
    *) fail "$name" "exit status $status" "$work/step.log" ;;
    esac
    write_results # whoever is cut off has this much
    [ $status = 0 ]
}

bench() { # NAME SECONDS ARGUMENT...
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$work/bench_gpu" "$device" $small "$@"
}

# ---- build ----

compute_capability() {
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. '
}

# What the Makefile lets files of an instruction set use, by the end of their name.
isa_flags() {
    local suffix flags
    while read -r suffix flags; do
        case $1 in cpu/*_"$suffix".c) echo "$flags" ;; esac
    done < <(sed -n 's/^\$(BUILD)\/cpu\/%_\([a-z0-9]*\)\.o: CFLAGS += \(.*\)/\1 \2/p' Makefile)
}

# compile SOURCE: into $work, unless a newer object is there. For xargs.
compile() {
    local source=$1 object=$work/$1.o
    [ "$object" -nt "$newest" ] && return 0
    mkdir -p "$(dirname "$object")"
    case $source in
    *.cu)
        "$CUDA_HOME/bin/nvcc" -std=c++20 -O3 -lineinfo -allow-unsupported-compiler -I. $headers \
            $gencode -Xcompiler "-fno-exceptions -fno-rtti -fno-threadsafe-statics" \
            -c -o "$object" "$source" ;;
    *)
        local flags="-O2"
        case $source in cpu/*) flags="-O3 -fno-math-errno $(isa_flags "$source")" ;; esac
        ${CC:-cc} -std=c17 -D_GNU_SOURCE -g -fno-strict-aliasing -ffp-contract=off -pthread -w \
            -Iscripts/bare -I. -MMD $flags -c -o "$object" "$source" ;;
    esac
}
export -f compile isa_flags

objects() { printf "$work/%s.o " "$@"; }

# link PROGRAM OBJECT...
link() {
    local program=$1
    shift
    ${LD_CXX:-${CC:-cc}} -pthread -o "$work/$program" "$@" $libs -lm
}

build() {
    local common sources tests machine wrap=()
    tests=(tests/cuda/cases_*.c tests/cuda/cuda_side.c tests/cuda/test_cuda_ops.c
           tests/cuda/test_cuda_model.c tests/cpu/cpu_util.c tests/model/engine_fixture.c
           tests/model/golden.c tests/model/train_fixture.c)
    common=(base/*.c model/*.c cpu/*.c scripts/bare/*.c $(ls cuda/*.c | grep -v cuda_none))
    local bench=(scripts/gpu/bench.c scripts/gpu/bench_*.c) cu=() libs="" extra=()
    bench=($(printf '%s\n' "${bench[@]}" | sort -u | grep -v bench_machine))
    gencode="" newest=$(find base model cpu cuda scripts tests/cuda tests/cpu tests/model Makefile \
                        -newer Makefile -type f -printf '%T@ %p\n' \
                        | sort -n | tail -n 1 | cut -d' ' -f2-)
    newest=${newest:-Makefile}
    case $mode in
    cpu)
        bench+=(scripts/gpu/bench_machine_cpu.c) common+=(cuda/cuda_none.c) tests=() ;;
    gpu)
        local sm=$(compute_capability)
        gencode="-gencode arch=compute_${sm:-90},code=sm_${sm:-90}"
        cu=($(ls -S cuda/*.cu scripts/gpu/*.cu))
        for name in lib64 lib targets/x86_64-linux/lib; do libs+=" -L$CUDA_HOME/$name"; done
        libs+=" -lcudart_static -lrt -ldl" ;;
    simulate)
        gencode="-gencode arch=compute_80,code=compute_80 --no-compress"
        cu=(scripts/gpu/bench_machine.cu) LD_CXX=${CXX:-c++}
        extra=($(ls build/ptxsim/cuda/*.cu.o build/ptxsim/tests/ptxsim/*.o \
                 | grep -v 'cublas_load\|/test_\|seeded')) ;;
    esac
    sources=("${cu[@]}" "${common[@]}" "${bench[@]}" "${tests[@]}")
    export work gencode newest
    # What does not compile is named, and what can do without it goes on.
    local ok=0
    printf '%s\n' "${sources[@]}" \
        | xargs -P "$jobs" -I{} bash -c 'compile {} || { echo "cannot compile {}"; exit 1; }' \
        || ok=1
    for name in gpt_load checkpoint_config dataset_add; do wrap+=("-Wl,--wrap=$name"); done
    local base=$(objects "${common[@]}" "${cu[@]}")
    link bench_gpu "${wrap[@]}" $(objects "${bench[@]}") $base "${extra[@]}" || ok=1
    [ $mode = cpu ] && return $ok
    local shared=$(objects $(printf '%s\n' "${tests[@]}" | grep -v '/test_cuda'))
    for name in test_cuda_ops test_cuda_model; do
        link $name $(objects tests/cuda/$name.c) $shared $base "${extra[@]}" || ok=1
    done
    return $ok
}

# Nothing may come from libraries that a bare machine lacks.
check_bare() {
    ! grep -lE '/usr/[^ ]*/(cjson/|openssl/|microhttpd|gnutls|cmocka|pcre2|uninorm|unictype)' \
        $(find "$work" -name '*.d') /dev/null
}

# ---- what is checked ----

count_tests() { # NAME
    local passed=$(grep '^ok' "$work/step.log" | grep -vc SKIP)
    [ "$passed" != 0 ] || fail "$1" "nothing was checked" "$work/step.log"
    result tests "$1" "$passed" passed \
        "$(grep -c '^not ok' "$work/step.log") failed, $(grep -c SKIP "$work/step.log") skipped"
}

# What has failed, was at work at the end, or was never reached because of it, in $work/step.log:
# each once more in a process of its own, with kernels waited for, so that a GPU fault is told apart
# and named; then with every access watched.
run_again() { # PROGRAM
    [ -x "$work/$1" ] || return # it was not built, as was said
    local program=$1 names name end=$((SECONDS + 100 * slower))
    local sanitizer=$(command -v compute-sanitizer)
    cp "$work/step.log" "$work/first.log"
    names=$(sed -n 's/^not ok [0-9]* - \([a-z0-9_]*\).*/\1/p' "$work/first.log")
    # A name without an outcome, and all after it, where the list was not finished.
    grep -q '^1\.\.' "$work/first.log" ||
        names+=" $(grep -E '^# test_[a-z0-9_]*$' "$work/first.log" | tail -n 1 | cut -c3-)
                 $(sed -n 's/.*cmocka_unit_test(\(.*\)),.*/\1/p' "tests/cuda/$program.c" \
                   | grep -vxFf <(sed -n 's/^# \(test_[a-z0-9_]*\)$/\1/p' "$work/first.log"))"
    for name in $names; do
        [ $SECONDS -lt $end ] ||
            { result tests "$name alone" 0 skipped "no time was left"; continue; }
        if step "$name alone" 20 env CUDA_LAUNCH_BLOCKING=1 "$work/$program" "$name"; then
            result tests "$name alone" 1 passed "$(grep -m1 '^ok' "$work/step.log")"
        elif [ -n "$sanitizer" ]; then
            step "$name under memcheck" 25 "$sanitizer" --print-limit 10 "$work/$program" "$name"
        fi
    done
}

check_tests() {
    local ops="*"
    [ $mode = simulate ] && ops="test_norms"
    step "kernel tests" 90 "$work/test_cuda_ops" "$ops" || local again=1
    count_tests "every kernel against the CPU's"
    [ -z "${again:-}" ] || run_again test_cuda_ops
    if [ $mode = gpu ]; then # as training has them, where cuBLASLt is
        step "gradients by cuBLASLt" 60 \
            env CUDA_MODULE_LOADING=LAZY "$work/test_cuda_ops" test_products_backward
        count_tests "gradients of products as training computes them"
    fi
    local model="*"
    [ $mode = simulate ] && model="*gpt2*"
    again=
    step "tiny models" 60 "$work/test_cuda_model" "$model" || again=1
    count_tests "tiny models, serving and training"
    [ -z "$again" ] || run_again test_cuda_model
}

has_torch=0
check_parity() {
    bench "parity with the CPU" 60 parity "$work/parity"
    [ $has_torch = 0 ] || step "parity with torch" 60 "${torch[@]}" parity "$work/parity"
}

# Errors count; that there was no time for more does not.
sanitize() { # TOOL SECONDS PATTERN
    local log=$work/sanitizer-$1.log left=$((budget - SECONDS - 5)) limit=$2
    local found='(Invalid|Error|Race|.*hazard|Uninitialized|Barrier|Misaligned|Program hit)'
    [ "$left" -lt "$limit" ] && limit=$left
    [ "$limit" -lt 8 ] && result sanitizer "$1" 0 skipped "no time was left" && return
    timeout -k 5 "$limit" compute-sanitizer --tool "$1" --print-limit 20 \
        "$work/test_cuda_ops" "$3" >"$log" 2>&1
    local status=$? ok=$(grep -c '^ok' "$log")
    { echo; echo "### compute-sanitizer $1"; cat "$log"; } >>"$out/log.txt"
    if grep -q 'Device not supported' "$log"; then
        result sanitizer "$1" 0 skipped "it does not run here: $(grep -m1 'not supported' "$log")"
    elif grep -q '^not ok' "$log" || grep -qE "^========= +$found" "$log"; then
        fail "compute-sanitizer $1" "it has found something" "$log"
    elif [ "$status" != 0 ] && [ "$status" != 124 ]; then
        fail "compute-sanitizer $1" "exit status $status" "$log"
    else
        local stopped=$([ "$status" = 124 ] && echo ", stopped after $limit s")
        result sanitizer "$1" "$ok" tests "clean$stopped"
    fi
}

check_sanitizer() {
    command -v compute-sanitizer >/dev/null || PATH=$PATH:$CUDA_HOME/bin
    if [ $mode != gpu ] || ! command -v compute-sanitizer >/dev/null; then
        result sanitizer "compute-sanitizer" 0 skipped "it is not here"
        return
    fi
    sanitize memcheck 60 "*"
    sanitize racecheck 40 "test_[pnar]*"
    sanitize synccheck 20 "test_[pnar]*"
    sanitize initcheck 20 "test_[ncs]*"
}

measure_decode() {
    local preset presets="150M_1024 350M_1024 750M_1024"
    [ $mode != simulate ] || presets=150M_1024
    for preset in $presets; do
        bench "decode $preset" 40 decode "configs/$preset.json" 1 8 32 128
    done
}

measure_prefill() {
    local preset presets="150M_1024 750M_1024"
    [ $mode != simulate ] || presets=150M_1024
    for preset in $presets; do bench "prefill $preset" 30 prefill "configs/$preset.json"; done
}

measure_train() {
    local presets=(150M_1024 150M 350M_1024 small tiny_char 750M_1024 500M_1024 200M 250M
                   200M_1024 250M_1024 tiny)
    [ $mode = gpu ] || presets=(150M) # they are cut to one shape
    for preset in "${presets[@]}"; do bench "train $preset" 25 train "configs/$preset.json" 6; done
}

# Under Nsight Compute: kernel by kernel, what the hardware counted.
profile_kernels() { # NAME SKIP COUNT ARGUMENT...
    local name=$1 skip=$2 count=$3 csv=$work/ncu.csv
    shift 3
    local metrics=gpu__time_duration.sum,dram__bytes.sum
    metrics+=,sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed
    step "kernels of $name" 45 ncu --profile-from-start off --clock-control none \
        --launch-skip "$skip" --launch-count "$count" --csv --page raw --print-units base \
        --log-file "$csv" --metrics "$metrics" "$work/bench_gpu" "$device" "$@" || return
    { echo; echo "### kernels of $name"; python3 scripts/gpu/ncu_table.py <"$csv"; } \
        >>"$out/profile.txt" 2>&1
}

# Is Nsight Compute here, and may it read the counters?
has_ncu() {
    command -v ncu >/dev/null && python3 -c 'import csv' 2>/dev/null || return 1
    timeout -k 5 40 ncu --clock-control none --launch-count 1 --metrics gpu__time_duration.sum \
        "$work/bench_gpu" "$device" info >"$work/ncu.log" 2>&1 \
        && ! grep -q '^==ERROR==' "$work/ncu.log" && return 0
    { echo; echo "### ncu"; cat "$work/ncu.log"; } >>"$out/log.txt"
    result profile "Nsight Compute" 0 skipped \
        "it does not run here: $(grep -m1 '^==ERROR==' "$work/ncu.log")"
    return 1
}

measure_profile() {
    local ncu=0 profiling=1
    [ $mode = gpu ] && has_ncu && ncu=1
    for what in "decode configs/350M_1024.json 1" "decode configs/350M_1024.json 32" \
        "train configs/150M_1024.json 2"; do
        step "profile of $what" 30 "$work/bench_gpu" "$device" $small --profile $what || continue
        {
            echo
            echo "### operations of $what: each waited for"
            grep -v '^RESULT' "$work/step.log"
        } >>"$out/profile.txt"
    done
    if [ $ncu = 1 ]; then
        profile_kernels "350M_1024, decode, batch 1" 400 600 decode configs/350M_1024.json 1
        profile_kernels "150M_1024, a training step" 0 1500 train configs/150M_1024.json 1
    fi
    tail -n 70 "$out/profile.txt"
}

measure_torch() {
    local t="${torch[*]}" preset
    [ $has_torch = 1 ] || { result torch torch 0 skipped "python3 has none"; return; }
    grep -q True "$work/torch" ||
        { result torch torch 0 skipped "it has no GPU: $(cat "$work/torch")"; return; }
    [ $mode = gpu ] || { result torch torch 0 skipped "not without a GPU"; return; }
    step "torch: rates" 40 $t rates
    for preset in 150M_1024 350M_1024; do
        step "torch: decode $preset" 40 $t decode "configs/$preset.json" 1 8 32 128
    done
    step "torch: training" 60 \
        $t train configs/150M_1024.json configs/150M.json configs/350M_1024.json
    step "torch: training, compiled" 75 $t --compile train configs/150M_1024.json
}

# ---- the end ----

write_json() {
    awk -F'\t' 'function text(s) { gsub(/[\\"]/, "\\\\&", s); return "\"" s "\"" }
        BEGIN { print "[" }
        function number(s) { return s ~ /^-?[0-9.]+(e[-+]?[0-9]+)?$/ ? s : "null" }
        $1 == "RESULT" { printf "%s  {\"section\": %s, \"name\": %s, ", n++ ? ",\n" : "",
                                text($2), text($3)
                         printf "\"value\": %s, \"unit\": %s, \"note\": %s}",
                                number($4), text($5), text($6) }
        END { print "\n]" }' "$out/results.tsv" >"$out/results.json"
}

write_results() {
    write_json
    {
        date -u '+%F %T UTC'
        git log -1 --format='commit %h' 2>/dev/null
        show <"$out/results.tsv"
    } >"$out/results.txt"
}

summary() {
    write_results
    say "all results"
    cat "$out/results.txt"
    rm -f "$out/results.tsv"
    if [ ${#failed[@]} = 0 ]; then
        printf '\nall is well, in %d s; results lie in %s\n' "$SECONDS" "$out"
    else
        printf '\nFAILED: %s; in %d s; results lie in %s\n' \
            "$(printf '%s, ' "${failed[@]}" | sed 's/, $//')" "$SECONDS" "$out"
    fi
    [ ${#failed[@]} = 0 ]
}

# Whoever ends us early has what is known so far.
trap 'write_results; exit 1' TERM INT HUP

# torch brings libraries of its own, which those of the toolkit must not come before.
torch=(env "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}" python3 scripts/gpu/bench_torch.py)
# cuBLASLt, which training uses where the loader finds it, may have come with torch.
lt=$(python3 -c 'import glob, os, sys
found = [f for p in sys.path for f in glob.glob(p + "/nvidia/*/lib/libcublasLt.so.1[23]")]
print(os.path.dirname(found[0]) if found else "")' 2>/dev/null)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$CUDA_HOME/lib64${lt:+:$lt}
# So may its header, where the toolkit was installed without.
headers=""
ls "$CUDA_HOME"/include/cublasLt.h "$CUDA_HOME"/targets/*/include/cublasLt.h \
   /usr/include/cublasLt.h 2>/dev/null | grep -q . ||
    headers=${lt:+-isystem ${lt%/lib}/include}

# torch is read from the disk while the compiler works.
if python3 -c '' 2>/dev/null; then
    (timeout -k 5 100 "${torch[@]:0:3}" -c 'import torch
print(torch.__version__, "for CUDA", torch.version.cuda, "GPU:", torch.cuda.is_available())' \
        >"$work/torch" 2>"$work/torch.log" || rm -f "$work/torch") &
fi
torch_pid=${!:-}

say build
export -f build compute_capability objects link
export mode jobs work headers
timeout -k 5 $((240 * slower)) bash -uc build >"$work/build.log" 2>&1
built=$?
cat "$work/build.log" >>"$out/log.txt"
if [ $built = 0 ] && check_bare >>"$work/build.log"; then
    result build "everything, $jobs at a time" $SECONDS s ""
else
    fail build "see log.txt" "$work/build.log"
    ls "$work"/bench_gpu "$work"/test_cuda_* >/dev/null 2>&1 || { summary; exit 1; }
fi
[ $mode = cpu ] || result info nvcc 0 "" "$("$CUDA_HOME/bin/nvcc" --version | grep release)"
[ -z "$torch_pid" ] || wait "$torch_pid"
[ -s "$work/torch" ] && has_torch=1 && result info torch 0 "" "$(cat "$work/torch")"
# Without the device nothing else can be had: whoever has little time with it shall know at once.
bench info 60 info || [ $mode != gpu ] || { summary; exit 1; }

sections="tests parity rates decode prefill train profile torch sanitizer"
[ $quick = 0 ] || sections="tests parity sanitizer"
[ $mode != cpu ] || sections=${sections#tests }
for section in $sections; do
    wanted "$section" || continue
    say "$section"
    case $section in
    tests | parity | sanitizer) "check_$section" ;;
    rates) bench rates 40 rates ;;
    *) "measure_$section" ;;
    esac
    write_results
done
summary
