#!/usr/bin/env python3
"""Stands in for `gptd train`, so that what supervises it can be tested in seconds: the same command
line, files, signals and exit codes. The training data's first line says what to do.

    steps=N        steps to make (default 20); `max-iters` on the command line wins
    pause=S        seconds a step takes (default 0.02)
    save=N         a checkpoint every N steps (default 5)
    config=W       a train_config.json, which says how many steps, and W for their warm-up
    memory=JSON     what memory.json says; none without it
    die=MODE@N     at step N, unless resumed: exit (code 1), nofit (3), abort, kill (SIGKILL), segv,
                   hang (ignores SIGTERM)

The model that it leaves is a copy of the one in $FAKE_MODEL (default models/shakespeare)."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def options(argv):
    out = {}
    for argument in argv:
        name, _, value = argument.removeprefix("--").partition("=")
        out[name] = value
    return out


def newest(folder):
    steps = [int(path.parent.name.removeprefix("step-"))
             for path in folder.glob("checkpoints/step-*/manifest.json")]
    return max(steps, default=0)


def save(folder, step):
    path = folder / "checkpoints" / f"step-{step}"
    path.mkdir(parents=True, exist_ok=True)
    publish(path)
    (path / "trainer_state.json").write_text(json.dumps({"step": step}))
    (path / "manifest.json").write_text("{}")  # without it, it is not complete


def publish(folder):
    source = Path(os.environ.get("FAKE_MODEL", ROOT / "models" / "shakespeare"))
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)


def die(mode):
    if mode == "exit":
        print("some noise\ngptd train: the loss is not finite at step 7", file=sys.stderr)
        sys.exit(1)
    if mode == "nofit":
        print("gptd train: needs 9 GiB, the budget is 1 GiB", file=sys.stderr)
        sys.exit(3)
    if mode == "abort":
        os.abort()
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)


def main():
    assert sys.argv[1] == "train", sys.argv
    o = options(sys.argv[2:])
    assert ("config" in o) != ("init-from" in o), o
    plan = {"steps": "20", "pause": "0.02", "save": "5", "die": "none@0"}
    first = Path(o["input"]).read_text(errors="replace").partition("\n")[0]
    plan.update(word.split("=", 1) for word in first.split() if "=" in word)
    steps = int(o.get("max-iters", plan["steps"]))
    mode, _, at = plan["die"].partition("@")
    folder = Path(o["out-dir"]) / o["model-name"]
    folder.mkdir(parents=True, exist_ok=True)
    begin = newest(folder) if "resume" in o else 0
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    print(json.dumps({"argv": sys.argv[1:], "begin": begin, "nice": os.nice(0),
                      "batch": os.sched_getscheduler(0) == os.SCHED_BATCH,
                      "group": os.getpgrp() == os.getpid()}), flush=True)
    if "memory" in plan:
        (folder / "memory.json").write_text(plan["memory"])
    if "config" in plan:
        (folder / "train_config.json").write_text(json.dumps({
            "n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 8, "vocab_size": 32,
            "max_iters": steps, "warmup_iters": int(plan["config"])}))
    with open(folder / "metrics.jsonl", "a") as metrics:
        for step in range(begin + 1, steps + 1):
            if step == int(at) and begin == 0:
                die(mode)
            time.sleep(float(plan["pause"]))
            line = {"step": step, "loss": 4.0 / step, "lr": 0.001, "tokens_per_s": 1000.0}
            if step % int(plan["save"]) == 0:
                line["val_loss"] = 4.5 / step
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            if step % int(plan["save"]) == 0 or stopped:
                save(folder, step)
            if stopped:
                publish(folder)
                print(f"stopped after step {step}")
                return
    print(f"trained, {steps} steps")
    publish(folder)


main()
