#!/bin/bash
# What number formats do to a loss curve: trains one small model (nanoGPT's CPU settings: 4
# layers of width 128, block 64, batch 12) in every format and with several seeds, then
# draws the curves and prints a table.
#
#     scripts/compare_formats.sh TEXT NAME OUT.svg [RUNS_DIR]
#
# SEEDS ("1 2 3"), STEPS (600), THREADS (1) and GPTD (build/gptd) come from the environment. Runs
# lie in RUNS_DIR/NAME-MODE-SEED (default build/runs); those that have ended are not done again, so
# that a comparison broken off goes on. Five minutes a seed on one core of a Zen 4.
set -eu
[ $# -ge 3 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$0")
text=$1 name=$2 out=$3 runs=${4:-$here/../build/runs}
seeds=${SEEDS:-1 2 3} steps=${STEPS:-600} gptd=${GPTD:-$here/../build/gptd}
least="--dtype bf16 --moments q8 --gradients bf16 --micro-batch-size 1 --recompute block"
# A mode, what it is called, its options.
modes=(
    "f32|f32|--dtype f32"
    "bf16|bf16|--dtype bf16"
    "bf16-master|bf16, f32 masters|--dtype bf16 --master f32"
    "bf16-mom|bf16, bf16 moments|--dtype bf16 --moments bf16"
    "bf16-q8|bf16, 8-bit moments|--dtype bf16 --moments q8"
    "bf16-grad|bf16, bf16 gradients|--dtype bf16 --gradients bf16"
    "bf16-least|all savings together|$least"
)
mkdir -p "$runs"
cat >"$runs/nano.json" <<EOF_CONFIG
{ "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "bias": false,
  "batch_size": 12, "learning_rate": 0.001, "min_lr": 0.0001, "warmup_iters": 100,
  "lr_schedule": "cosine", "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "grad_clip": 1.0,
  "eval_iters": 145, "save_interval": 0, "sample_tokens": 0 }
EOF_CONFIG

plot=()
for mode in "${modes[@]}"; do
    IFS='|' read -r short title options <<<"$mode"
    files=""
    for seed in $seeds; do files+=",$runs/$name-$short-$seed/metrics.jsonl"; done
    plot+=("$title=${files#,}")
done

for seed in $seeds; do
    for mode in "${modes[@]}"; do
        IFS='|' read -r short title options <<<"$mode"
        run=$name-$short-$seed
        ! grep -qs "\"step\":$steps,.*val_loss" "$runs/$run/metrics.jsonl" || continue
        echo "$title, seed $seed" >&2
        # shellcheck disable=SC2086  # options are words
        "$gptd" train --config "$runs/nano.json" --model-name "$run" --input "$text" --out-dir \
            "$runs" --overwrite --threads "${THREADS:-1}" --seed "$seed" --max-iters "$steps" \
            --eval-interval "$steps" $options >/dev/null 2>"$runs/$run.log" ||
            { tail -n 3 "$runs/$run.log" >&2; exit 1; }
        rm -rf "$runs/$run/checkpoints"
    done
done
python3 "$here/plot_runs.py" --out "$out" "${plot[@]}"
