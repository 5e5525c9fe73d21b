"""`gptd plan`: what it says adds up, agrees with what trains and serves, and needs no GPU."""

import json
import re

import pytest

from gptd import MODEL, ROOT, run

PRESETS = {
    "tiny": 11_454_144, "small": 30_036_864, "150M": 152_101_632, "200M": 199_472_000,
    "250M": 253_133_824, "150M_1024": 152_691_456, "200M_1024": 200_160_128,
    "250M_1024": 253_920_256, "350M_1024": 354_599_936, "500M_1024": 537_621_760,
    "750M_1024": 758_392_320,
}


def plan(*arguments, code=0):
    reply = run("plan", *arguments, "--json")
    assert reply.returncode == code, reply.stderr
    return json.loads(reply.stdout)


def preset(name):
    return f"configs/{name}.json"


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    report = plan("--config", preset(name), "--device", "cuda")
    assert report["parameters"] == PRESETS[name]
    for part in (report["training"], report["generation"], *report["alternatives"]):
        assert part["total_bytes"] == sum(part["components"].values())
        assert part["total_bytes"] == part["device_bytes"] + part["host_bytes"]
        assert all(n > 0 for n in part["components"].values())
    assert report["ratio"] == pytest.approx(
        report["training"]["total_bytes"] / report["generation"]["total_bytes"])
    assert report["fits"] and report["shortfall_bytes"] == 0
    assert report["device_overhead_bytes"] > 0 and "estimate" in report["device_overhead_source"]


def test_generation_is_weights_and_one_sequence():
    report = plan("--config", preset("150M_1024"), "--device", "cuda")
    components = report["generation"]["components"]
    assert components["kv_cache"] == 2 * 16 * 768 * 1024 * 2
    positions = 2 * 1024 * 768  # kept in f32
    assert components["weights"] == pytest.approx(2 * PRESETS["150M_1024"] + positions, rel=1e-3)
    assert report["generation"]["options"]["max_seqs"] == 1


def test_a_quantized_cache():
    report = plan("--config", preset("150M_1024"), "--kv-dtype", "q8_0")
    pages = 16 * 64 * 12  # layers, pages of 16 tokens, heads
    assert report["generation"]["components"]["kv_cache"] == pages * 16 * (2 * 64 + 3 * 4)
    assert report["generation"]["options"]["kv_dtype"] == "q8_0"
    assert plan("--config", preset("tiny"))["generation"]["options"]["kv_dtype"] == "bf16"
    refused = run("plan", "--config", preset("tiny"), "--kv-dtype", "q8_0", "--gpu", "RTX 3060")
    assert refused.returncode == 1 and "not in q8_0: say auto" in refused.stderr


def test_auto_is_what_nothing_says():
    """The words of train and serve."""
    for model in (preset("tiny"), preset("150M_1024")):
        keys = ("dtype", "kv-dtype", "recompute", "moments", "master", "gradients")
        flags = [word for key in keys for word in (f"--{key}", "auto")]
        assert plan("--config", model, *flags) == plan("--config", model)


def test_training_takes_what_was_planned(tmp_path):
    """The same options give the trainer's own bytes, less the text."""
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(33 + i % 90) for i in range(20_000)))
    flags = ["--micro-batch-size", "4", "--loss-rows", "128", "--recompute", "selective",
             "--moments", "q8", "--gradients", "f32", "--dtype", "bf16", "--master", "remainder"]
    trained = run("train", "--config", preset("tiny_char"), "--model-name", "m", "--input", text,
                  "--out-dir", tmp_path, "--max-iters", "1", "--eval-interval", "0",
                  "--threads", "1", *flags)
    assert trained.returncode == 0, trained.stderr
    said = {name: int(n) for name, n in
            re.findall(r"memory: (\w+) +(\d+) bytes", trained.stderr + trained.stdout)}
    config = json.loads((tmp_path / "m" / "train_config.json").read_text())
    report = plan("--config", preset("tiny_char"), "--vocab-size", config["vocab_size"],
                  "--threads", "1", *flags)
    components = report["training"]["components"]
    for name in ("weights", "master", "gradients", "optimizer", "activations", "logits",
                 "kv_cache", "workspace"):
        assert components.get(name, 0) == said.get(name, 0), name


def test_a_model_is_planned_from_its_header(tmp_path):
    """The weights' bytes are not read: holes will do."""
    for name in ("config.json", "model.safetensors"):
        data = (MODEL / name).read_bytes()
        keep = 8 + int.from_bytes(data[:8], "little") if name.endswith("tensors") else len(data)
        with open(tmp_path / name, "wb") as f:
            f.write(data[:keep])
            f.truncate(len(data))
    report, real = plan("--model", tmp_path), plan("--model", MODEL)
    assert report["generation"] == real["generation"] and report["training"] == real["training"]
    assert report["parameters"] == json.loads(run("inspect", MODEL, "--json").stdout)[
        "parameters"]["total"]


def test_what_does_not_fit_exits_with_3_and_the_numbers():
    flags = ["--gpu", "4GiB", "--moments", "f32", "--recompute", "none", "--micro-batch-size", "32"]
    report = plan("--config", preset("150M"), *flags, code=3)
    training = report["training"]
    assert not report["fits"] and not training["fits"] and report["generation"]["fits"]
    assert report["shortfall_bytes"] == training["total_bytes"] - report["budget_bytes"] > 0
    assert training["options"]["micro_batch_size"] == 32
    assert report["alternatives"]
    times = [a["estimated_step_seconds"] for a in report["alternatives"]]
    assert all(a["total_bytes"] <= report["budget_bytes"] for a in report["alternatives"])
    # Times within 2 % of each other are the same: fewer lossy formats go first.
    assert all(b > 0.97 * a for a, b in zip(times, times[1:]))
    reply = run("plan", "--config", preset("150M"), *flags)
    assert reply.returncode == 3
    assert str(report["shortfall_bytes"]) in reply.stderr
    assert plan("--config", preset("150M"), *flags, "--purpose", "generation")["fits"]


def test_the_budget_is_kept_and_used():
    whole = plan("--config", preset("150M"), "--device", "cuda")
    smallest = whole["alternatives"][-1]["total_bytes"]
    last = 0
    for budget in (smallest, smallest * 3 // 2, whole["training"]["total_bytes"]):
        report = plan("--config", preset("150M"), "--device", "cuda", "--memory-budget", budget)
        assert report["fits"] and report["training"]["total_bytes"] <= budget
        speed = report["training"]["estimated_tokens_per_s"]
        assert speed >= last * 0.98
        last = speed
    plan("--config", preset("150M"), "--device", "cuda", "--memory-budget", smallest // 2, code=3)


def test_the_largest_is_the_largest():
    common = ["--config", preset("small"), "--gpu", "gtx1650"]
    largest = plan(*common)["generation"]["largest"]
    n = largest["max_seqs"]
    if n < 4096:
        assert plan(*common, "--max-seqs", n)["generation"]["fits"]
        assert not plan(*common, "--max-seqs", n + 1, code=3)["generation"]["fits"]
    long = ["--config", preset("150M"), "--gpu", "3GiB"]
    length = plan(*long)["training"]["largest"]["sequence_length"]
    assert plan(*long, "--block-size", length, "--purpose", "training")["training"]["fits"]
    reply = plan(*long, "--block-size", length * 2, "--purpose", "training", code=3)
    assert not reply["training"]["fits"]


def test_cards():
    report = plan("--config", preset("750M_1024"))
    cards = {card["name"]: card for card in report["gpus"]}
    assert len(cards) >= 40
    assert cards["H200"]["trains"] and cards["RTX 3060"]["trains"]
    assert cards["GTX 1060 6GB"] == {
        "name": "GTX 1060 6GB", "memory_bytes": 6 << 30, "trains": False, "generates": True}
    for name in ("GTX 1060 6GB", "RTX 3060"):
        code = 0 if cards[name]["trains"] else 3
        assert plan("--config", preset("750M_1024"), "--gpu", name, code=code)["training"][
            "fits"] == cards[name]["trains"]


def test_presets_on_a_card():
    reply = run("plan", "--gpu", "rtx 3050 laptop")
    assert reply.returncode == 0, reply.stderr
    rows = dict(re.findall(r"^\| (\S+) \| ([a-z ]+) \|", reply.stdout, re.M))
    assert rows["tiny"] == rows["150M"] == "trains"
    assert rows["750M_1024"] == "only generates"
    assert "estimates" in reply.stdout


def test_the_guide_is_in_the_docs():
    """README.md and docs/memory.md say what the program says: scripts/write_guide.py writes it."""
    guide = run("plan", "--guide")
    assert guide.returncode == 0, guide.stderr
    for name in ("README.md", "docs/memory.md"):
        text = (ROOT / name).read_text()
        kept = text.split("<!-- gptd plan --guide -->\n")[1].split("<!-- end of the guide -->\n")[0]
        assert kept == guide.stdout, f"{name} is old: run python3 scripts/write_guide.py"
    number = r" ([\d.]+) \|"
    rows = re.findall(r"^\| (\S+) \| [\d,]+ \| [^|]+ \|" + 2 * number + r" x ([\d.]+) \|" + number,
                      guide.stdout, re.M)
    assert len(rows) == 13
    for name, fast, small, slowdown, generating in rows:
        assert float(generating) < float(small) <= float(fast) and float(slowdown) >= 1, name


def test_the_last_alternative_is_the_smallest_plan():
    """One byte less, and nothing trains."""
    report = plan("--config", preset("small"), "--device", "cuda")
    smallest = report["alternatives"][-1]["total_bytes"]
    common = ["--config", preset("small"), "--device", "cuda", "--purpose", "training"]
    assert plan(*common, "--memory-budget", smallest)["training"]["total_bytes"] == smallest
    plan(*common, "--memory-budget", smallest - 1, code=3)


def test_list_has_every_byte():
    reply = run("plan", "--config", preset("tiny"), "--list")
    report = plan("--config", preset("tiny"))
    for part, key in zip(reply.stdout.split("\n\n"), ("training", "generation")):
        rows = [line for line in part.splitlines() if line.startswith(("host", "device"))]
        assert len(rows) > 30
        ends = {"host": 0, "device": 0}
        for line in rows:
            arena, offset, size = line[:7].strip(), int(line[66:84]), int(line[84:102])
            assert offset <= ends[arena]  # no gaps
            ends[arena] = max(ends[arena], offset + size)
        assert ends["host"] == report[key]["host_bytes"]
        assert ends["device"] == report[key]["device_bytes"]
    assert "shares bytes with" in reply.stdout and "layer" in reply.stdout


@pytest.mark.parametrize("axis", ["batch", "block", "dtype", "recompute", "moments"])
def test_tables(axis):
    reply = run("plan", "--config", preset("150M"), "--table", axis)
    assert reply.returncode == 0, reply.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in reply.stdout.splitlines()[2:]]
    assert len(rows) >= 2
    for row in rows:
        numbers = [int(cell.replace(",", "")) for cell in row[1:]]
        assert sum(numbers[:7]) == numbers[7]
    totals = [int(row[8].replace(",", "")) for row in rows]
    assert totals == sorted(totals, reverse=axis not in ("batch", "block"))


def test_explain_compares():
    reply = run("plan", "--config", preset("150M"), "--gpu", "8GiB", "--explain")
    assert reply.returncode == 0 and re.search(r"\d+ of \d+ plans fit", reply.stdout)


@pytest.mark.parametrize("arguments, word", [
    ((), "--config"),
    (("--config", "configs/150M.json", "--model", str(MODEL)), "one of them"),
    (("--config", "configs/150M.json", "--gpu", "RTX 3070 Tii"), "RTX 3070 Ti"),
    (("--config", "configs/150M.json", "--gpu", "8GiB", "--device", "cpu"), "GPU"),
    (("--config", "configs/150M.json", "--moments", "f8"), "moments"),
    (("--config", "configs/150M.json", "--batch-size", "0x"), "batch-size"),
    (("--config", "configs/150M.json", "--sequence-length", "512"), "sequence_length"),
    (("--config", "configs/150M.json", "--table", "colour"), "table"),
    (("--config", "configs/150M.json", "--json", "--list"), "one of them"),
    (("--model", str(MODEL), "--block-size", "64"), "block_size"),
    (("--gpu", "8GiB", "--json"), "--config"),
])
def test_wrong_usage(arguments, word):
    reply = run("plan", *arguments)
    assert reply.returncode == 2, reply.stdout
    assert word in reply.stderr


def test_files_that_are_not_there():
    assert run("plan", "--config", ROOT / "configs/none.json").returncode == 1
    reply = run("plan", "--gpu", "8GiB", "--configs-dir", "/nowhere")
    assert reply.returncode == 1 and "say --configs-dir DIR" in reply.stderr
    assert run("plan", "--model", ROOT / "models/none").returncode == 1
    assert run("plan", "--config", "configs/150M.json", "--gpu", "64MiB").returncode == 3
