"""The command line: help that tells the truth, errors that help, exit codes 0 1 2 3."""

import re
import shutil
import subprocess

import pytest

from gptd import CONFIG, MODEL, ROOT, Server, command, run, text_of

SUBCOMMANDS = ["serve", "generate", "inspect"]
GENERATE = ["generate", "--model", MODEL, "--prompt", "ROMEO:", "--max-new-tokens", "30"]


def options_of(subcommand):
    """Option names from the help."""
    names = re.findall(r"^ +--([a-z0-9][a-z0-9-]*)", run(subcommand, "--help").stdout, re.M)
    return [name for name in names if name != "help"]


def test_help():
    reply = run("--help")
    assert reply.returncode == 0
    assert all(name in reply.stdout for name in SUBCOMMANDS)
    assert run().returncode == 2


def test_version():
    number = r"\d+\.\d+\.\d+"
    assert re.fullmatch(rf"gptd {number}\nlibmicrohttpd {number}\n", run("--version").stdout)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_of_each_subcommand(name):
    reply = run(name, "--help")
    assert reply.returncode == 0 and not reply.stderr
    assert "usage: gptd " + name in reply.stdout
    assert all(len(line) <= 110 for line in reply.stdout.splitlines())


@pytest.mark.parametrize("name", ["serve", "generate"])
def test_every_option_in_the_help_exists(name):
    """Given an empty value, each says something else than that it is unknown."""
    options = options_of(name)
    assert len(options) > 10
    for option in options:
        reply = run(name, f"--{option}=", "--help")
        assert "there is no option" not in reply.stderr, option


@pytest.mark.parametrize("name", ["serve", "generate"])
@pytest.mark.parametrize("wrong, right", [("--modle", "--model"), ("--max-seq", "--max-seqs")])
def test_unknown_option_names_the_nearest(name, wrong, right):
    reply = run(name, wrong, "x")
    assert reply.returncode == 2
    assert wrong in reply.stderr and right in reply.stderr


def test_unknown_subcommand_names_the_nearest():
    reply = run("serv")
    assert reply.returncode == 2 and "serve" in reply.stderr


@pytest.mark.parametrize("arguments", [["serve"], ["generate"], ["inspect"],
                                       ["serve", "--model"], [*GENERATE, "--temperature", "hot"],
                                       [*GENERATE, "--temperature", "-1"],
                                       [*GENERATE, "--max-new-tokens", "1.5"],
                                       [*GENERATE, "--memory-budget", "6 apples"],
                                       [*GENERATE, "--dtype", "f12"],
                                       [*GENERATE, "--kv-dtype", "q4_0"],
                                       ["serve", "--model", MODEL, "--port", "70000"],
                                       ["serve", "--model", MODEL, "--model", f"{MODEL}/"],
                                       ["serve", "--model", MODEL, "--model", "=x"],
                                       ["serve", "--model", "x="]])
def test_wrong_usage_is_exit_2(arguments):
    reply = run(*arguments)
    assert reply.returncode == 2, reply.stderr
    assert reply.stderr.strip() and not reply.stdout


def test_generate():
    reply = run(*GENERATE, "--temperature", "0")
    assert reply.returncode == 0
    assert reply.stdout.strip()


@pytest.mark.parametrize("arguments", [
    ["inspect", MODEL], [*GENERATE, "--max-new-tokens", "1"],
    ["plan", "--config", "configs/tiny_char.json"],
    ["eval", "--model", MODEL, "--input", "tests/requirements.txt"]])
def test_a_report_that_nobody_gets_is_a_failure(arguments):
    with open("/dev/full", "w") as full:
        reply = subprocess.run(command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True,
                               cwd=ROOT)
    assert reply.returncode == 1 and "cannot write" in reply.stderr


def test_token_ids_are_separated_by_one_comma():
    ask = ["generate", "--model", MODEL, "--max-new-tokens", "1", "--token-ids"]
    assert run(*ask, "[1, 2]").returncode == 0
    assert all("separated by commas" in run(*ask, ids).stderr for ids in ("1,,2", "1,", ",1", ""))


def test_ranges_are_said_in_full():
    assert "from -1 to 9007199254740992" in run(*GENERATE, "--seed", "-2").stderr


def test_generate_is_determined_by_its_seed():
    first = run(*GENERATE, "--temperature", "1", "--seed", "5").stdout
    assert first == run(*GENERATE, "--temperature", "1", "--seed", "5").stdout
    assert first != run(*GENERATE, "--temperature", "1", "--seed", "6").stdout


@pytest.mark.parametrize("flags, body", [
    (["--temperature", "0"], {"temperature": 0}),
    (["--temperature", "0.8", "--top-k", "50", "--top-p", "0.95", "--seed", "3"],
     {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 3})])
def test_generate_equals_the_http_reply(flags, body):
    printed = run(*GENERATE, *flags).stdout
    server = Server()
    try:
        with server.client() as http:
            text = text_of(http, prompt="ROMEO:", max_tokens=30, **body)
    finally:
        server.stop()
    assert printed == text + "\n"


def test_inspect():
    reply = run("inspect", MODEL)
    assert reply.returncode == 0
    assert "llama" in reply.stdout
    assert re.search(r"3[,.]?214[,.]?080", reply.stdout)
    for number in (CONFIG["num_hidden_layers"], CONFIG["hidden_size"], CONFIG["vocab_size"]):
        assert str(number) in reply.stdout
    assert "byte-level BPE" in reply.stdout


def goldens():
    found = [path for path in sorted((ROOT / "tests" / "golden").rglob("*"))
             if path.suffix == ".gguf" or (path / "config.json").is_file()]
    assert found, "no golden models under tests/golden"
    return found


@pytest.mark.parametrize("path", goldens(), ids=lambda path: path.name)
def test_inspect_goldens(path):
    reply = run("inspect", path)
    assert reply.returncode == 0, reply.stderr
    assert reply.stdout.strip()


@pytest.mark.parametrize("command", [["inspect"], ["generate", "--prompt", "A", "--model"],
                                     ["serve", "--port", "0", "--model"]])
def test_missing_model(command, tmp_path):
    reply = run(*command, tmp_path / "nowhere")
    assert reply.returncode == 1
    assert "nowhere" in reply.stderr and "Traceback" not in reply.stderr
    assert len([line for line in reply.stderr.splitlines() if line.startswith("gptd")]) == 1


def damaged(tmp_path, name, change):
    """A copy of the shipped model with one file changed by a function on its bytes."""
    copy = tmp_path / "model"
    shutil.copytree(MODEL, copy)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(change(data))
    return copy


@pytest.mark.parametrize("name, change", [
    ("model.safetensors", lambda data: data[:-1]),
    ("model.safetensors", lambda data: data[:len(data) // 2]),
    ("model.safetensors", lambda data: data[:4]),
    ("model.safetensors", lambda data: b""),
    ("model.safetensors", lambda data: b"\xff" * 8 + data[8:]),
    ("model.safetensors", lambda data: data.replace(b'"BF16"', b'"XX16"', 1)),
    ("config.json", lambda data: data[:-10]),
    ("config.json", lambda data: data.replace(b'"hidden_size": 256', b'"hidden_size": 255')),
    ("config.json", lambda data: data.replace(b'"num_hidden_layers": 5',
                                              b'"num_hidden_layers": 6')),
    ("config.json", lambda data: data.replace(b'"llama"', b'"unheard_of"')),
    ("tokenizer.json", lambda data: data[:1000]),
], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("command", ["serve", "generate"])
def test_damaged_model(tmp_path, command, name, change):
    path = damaged(tmp_path, name, change)
    arguments = {"serve": ["--port", "0"], "generate": ["--prompt", "A"]}[command]
    reply = run(command, "--model", path, *arguments)
    assert reply.returncode == 1, reply.stderr
    assert name in reply.stderr or str(path) in reply.stderr


@pytest.mark.parametrize("command", [["generate", "--prompt", "A"], ["serve", "--port", "0"]])
def test_a_budget_too_small_is_exit_3_with_the_numbers(command):
    reply = run(*command, "--model", MODEL, "--memory-budget", "1MiB")
    assert reply.returncode == 3, reply.stderr
    assert re.search(r"\d{4,}|\d+(\.\d+)? ?[KMG]i?B", reply.stderr)


def test_a_budget_large_enough_is_kept():
    server = Server("--memory-budget", "64MiB")
    try:
        with server.client() as http:
            planned = http.get("/v1/memory").json()["devices"][0]["planned_bytes"]
            assert planned <= 64 << 20
    finally:
        server.stop()


def test_models_share_the_budget():
    """What is left by the first is not enough for the second."""
    reply = run("serve", "--port", 0, "--model", MODEL, "--model", f"b={MODEL}", "--memory-budget",
                "20MB")
    assert reply.returncode == 3, reply.stderr
    last = reply.stderr.splitlines()[-1]
    assert f"b={MODEL}" in last and "of the budget of 20000000 are taken by other models" in last
    server = Server("--model", f"b={MODEL}", "--memory-budget", "30MB")
    try:
        with server.client() as http:
            assert http.get("/v1/memory").json()["devices"][0]["planned_bytes"] <= 30e6
            load = {"model": "b", "id": "c"}
            reply = http.post("/v1/models/load", json=load)
            assert reply.status_code == 400 and "taken by other" in reply.text, reply.text
            assert http.delete("/v1/models/b").status_code == 200
            assert http.post("/v1/models/load", json={**load, "model": "shakespeare"}
                             ).status_code == 200
    finally:
        server.stop()


def test_a_gpu_that_is_missing_is_an_error():
    reply = run("generate", "--model", MODEL, "--prompt", "A", "--device", "cuda:0")
    assert reply.returncode == 1 and "cuda" in reply.stderr


def test_options_file(tmp_path):
    options = tmp_path / "options.json"
    options.write_text('{"temperature": 0, "max-new-tokens": 30, "prompt": "ROMEO:"}')
    by_file = run("generate", "--model", MODEL, "--options", options)
    assert by_file.returncode == 0, by_file.stderr
    assert by_file.stdout == run(*GENERATE, "--temperature", "0").stdout
    options.write_text('{"temprature": 0}')
    reply = run("generate", "--model", MODEL, "--options", options)
    assert reply.returncode == 2
    assert "in an options file: there is no option --temprature" in reply.stderr
