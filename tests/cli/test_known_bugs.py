"""The classes of bugs that servers and loaders of models are known for, each with the tests that
would find one here: a table, which is held to what the test files have, and the tests that lie
nowhere else."""

import json
import os
import pickle
import re
import resource
import runpy
import struct
import subprocess
import sys
import types

import pytest

from gptd import BINARY, ROOT, SANITIZED

HERE = "cli/test_known_bugs.py"
TESTS = {
    "integer overflow in tensor sizes": [
        ("model/test_gguf.c", "test_bad_tensors_are_refused_by_name"),
        ("model/test_safetensors.c", "test_bad_tensors_are_refused_by_name"),
        ("model/test_token_shards.c", "test_bad_manifests"),
        (HERE, "test_tiny_files_that_ask_for_much")],
    "offsets past the file": [
        ("model/test_gguf.c", "test_truncated_anywhere_is_refused"),
        ("model/test_safetensors.c", "test_truncated_anywhere_is_refused")],
    "header length trusted": [
        ("model/test_safetensors.c", "test_absurd_header_lengths_are_refused"),
        ("model/test_safetensors.c", "test_header_over_the_cap_is_refused_unread")],
    "unbounded counts": [
        ("model/test_gguf.c", "test_absurd_counts_are_refused_before_allocation"),
        ("api/test_request.c", "test_counts_are_limited")],
    "wrong metadata types": [
        ("model/test_gguf.c", "test_typed_readers"),
        ("model/test_gguf.c", "test_bad_values_are_refused"),
        ("model/test_config.c", "test_preset_wrong_values_are_refused")],
    "layer and vocabulary bounds": [
        ("model/test_config.c", "test_hf_bounds"),
        ("model/test_checkpoint.c", "test_missing_extra_and_misshapen_tensors_are_refused_by_name"),
        ("model/test_token_shards.c", "test_another_tokenizer_is_refused")],
    "negative integers in requests": [
        ("http/test_errors.py", "test_ill_typed"),
        ("http/test_errors.py", "test_ill_typed_completion")],
    "NaN and infinite sampler values": [
        ("base/test_json.c", "test_infinite_number_is_refused"),
        ("http/test_errors.py", "test_malformed_json")],
    "asserts reachable by clients": [
        ("http/test_concurrency.py", "test_rubbish_beside_good_requests"),
        ("http/test_errors.py", "test_errors_hurt_nobody"),
        ("fuzz/fuzz_request.c", "LLVMFuzzerTestOneInput"),
        ("http/test_faults.py", "test_a_request_survives_any_failure")],
    "recursion": [
        ("base/test_json.c", "test_deep_nesting_is_refused_before_recursion"),
        ("http/test_errors.py", "test_deep_json_inside_a_valid_body")],
    "huge n or headers": [
        ("http/test_errors.py", "test_ill_typed"),
        ("http/test_hygiene.py", "test_oversized_and_countless_headers"),
        ("http/test_hygiene.py", "test_absurd_content_length")],
    "blocking user options": [
        ("http/test_concurrency.py", "test_long_prompts_beside_short_ones"),
        ("http/test_hygiene.py", "test_slow_reader"), ("api/test_completion.c", "test_deadline")],
    "timing leaks": [(HERE, "test_keys_are_compared_in_constant_time")],
    "prefix-matched auth": [
        ("http/test_auth.py", "test_every_route_and_method_with_every_kind_of_key"),
        ("http/test_auth.py", "test_ways_to_give_a_key"),
        ("server/test_routes.c", "test_who_may")],
    "rebinding": [
        ("server/test_guard.c", "test_hosts"),
        ("http/test_auth.py", "test_only_local_names_in_host")],
    "traversal": [
        ("base/test_file.c", "test_files_beneath_a_folder"),
        ("http/test_models_swap.py", "test_what_cannot_be_loaded"),
        ("model/test_checkpoint_hf.c", "test_bad_indices_are_refused")],
    "unsafe deserialisation": [(HERE, "test_a_pickle_runs_no_code")],
    "fetching URLs": [(HERE, "test_nothing_connects_outwards"),
                      ("http/test_chat.py", "test_bad_messages")],
    "shared caches across keys": [
        ("http/test_auth.py", "test_prefixes_are_not_shared_among_keys")],
    "debug data": [
        ("api/test_error.c", "test_every_code"), ("http/test_faults.py", "test_a_full_disk_is_507"),
        ("http/test_auth.py", "test_refusals_are_counted_by_reason_and_the_log_names_keys")],
    "template injection": [
        ("api/test_chat.c", "test_markers_in_a_message_are_text"),
        ("api/test_chat.c", "test_unknown_templates_are_not_guessed_at")],
    "state files": [
        ("model/test_train_state.c", "test_damaged_state_is_refused"),
        ("model/test_train_state.c", "test_arrays_of_another_run"),
        ("server/test_jobs.c", "test_damaged_folders_are_left_out")],
    "cancels that cross requests": [
        ("http/test_disconnects.py", "test_others_do_not_notice"),
        ("http/test_concurrency.py", "test_64_streams_of_which_many_leave")],
    "allocation from tiny files": [
        ("model/test_gguf.c", "test_absurd_counts_are_refused_before_allocation"),
        (HERE, "test_tiny_files_that_ask_for_much")],
}


@pytest.mark.parametrize("name", TESTS)
def test_has_its_tests(name):
    assert len(TESTS) == 24
    for file, test in TESTS[name]:
        text = (ROOT / "tests" / file).read_text()
        if file.endswith(".py"):
            found = re.search(rf"^def {test}\(", text, re.M)
        else:  # defined, and run
            found = len(re.findall(rf"\b{test}\b", text)) > ("fuzz" not in file)
        assert found, f"tests/{file} has no {test}"


# ---- Tiny files ----

def gguf(n_tensors, n_keys, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def key_value(name, type_, value):
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", type_) + value


def tensor(name, *dims):
    return (struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
            + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", 0, 0))


def safetensors(header, length=None):
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
          "num_attention_heads": 1, "vocab_size": 256, "max_position_embeddings": 64,
          "rms_norm_eps": 1e-5}
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
GGUFS = {
    "tensors": gguf(2**60, 0),
    "keys": gguf(0, 2**60),
    "a string": gguf(0, 1, key_value(b"general.architecture", 8, struct.pack("<Q", 2**62))),
    "an array": gguf(0, 1, key_value(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2**61))),
    "a tensor": gguf(1, 0, tensor(b"x", 2**40)),
    "an overflow": gguf(1, 0, tensor(b"x", 2**32, 2**32)),
    "dimensions": gguf(1, 0, struct.pack("<Q", 1) + b"x" + struct.pack("<I", 2**31)),
}
FOLDERS = {
    "a header": ({}, safetensors({}, 2**40)),
    "a tensor": ({}, safetensors({"x": {**F32, "shape": [2**40], "data_offsets": [0, 2**42]}})),
    "an overflow": ({}, safetensors({"x": {**F32, "shape": [2**32, 2**32]}})),
    "layers": ({"num_hidden_layers": 2**31 - 1}, safetensors({"x": F32})),
    "a vocabulary": ({"vocab_size": 2**31 - 1}, safetensors({"x": F32})),
    "a context": ({"max_position_embeddings": 2**40}, safetensors({"x": F32})),
    "a width": ({"hidden_size": 2**30, "head_dim": 64}, safetensors({"x": F32})),
}


def inspect(path):
    """(exit status, stderr), in an address space of 512 MiB."""
    def limit():
        if not SANITIZED:
            resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
    done = subprocess.run([BINARY, "inspect", path], capture_output=True, text=True, timeout=60,
                          preexec_fn=limit)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", [*(f"gguf: {n}" for n in GGUFS), *FOLDERS])
def test_tiny_files_that_ask_for_much(tmp_path, name):
    """They are refused for what they say, and not because there was no memory for it."""
    path = tmp_path / "model.gguf"
    if name.startswith("gguf: "):
        path.write_bytes(GGUFS[name[6:]])
    else:
        path = tmp_path
        config, weights = FOLDERS[name]
        (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
        (path / "model.safetensors").write_bytes(weights + bytes(64))
    status, text = inspect(path)
    assert status == 1 and text.startswith("gptd inspect: "), (status, text)
    assert "memory" not in text and "allocat" not in text, text


# ---- What lies nowhere else ----

def test_keys_are_compared_in_constant_time():
    """By their digests, all of them, without a branch: time cannot be tested on a shared machine,
    so this reads the one place that compares."""
    text = (ROOT / "server" / "auth.c").read_text()
    assert len(re.findall(r"\bCRYPTO_memcmp\(", text)) == 1
    loop = text[:text.index("CRYPTO_memcmp(")].rindex("for (")
    body = text[loop:text.index("\n}", loop)]
    assert "break" not in body and not re.search(r"\breturn\b.*\n.*\n    }", body), body
    others = text.replace("CRYPTO_memcmp", "")
    assert not re.search(r"\b(memcmp|strcmp|strncmp)\([^;]*(digest|key)\b", others)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/gptd-known-bugs-evil",)


def test_a_pickle_runs_no_code(tmp_path, monkeypatch):
    """Importers read checkpoints of torch's, which are pickles."""
    class Torch(types.ModuleType):
        def __getattr__(self, name):
            return name
    monkeypatch.setitem(sys.modules, "torch", Torch("torch"))
    common = runpy.run_path(str(ROOT / "scripts" / "import_common.py"))
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps({"itos": {0: "a"}}))
    assert common["load_plain_pickle"](path) == {"itos": {0: "a"}}
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SystemExit, match="system"):
        common["load_plain_pickle"](path)
    assert not os.path.exists("/tmp/gptd-known-bugs-evil")


def test_nothing_connects_outwards():
    """Of all of gptd `gptd probe` alone makes connections, which are what its user names."""
    calls = re.compile(r"(?<![\w.>])(connect|getaddrinfo|gethostbyname)\(")
    found = {path.name for folder in ("base", "model", "cpu", "api", "server")
             for path in (ROOT / folder).glob("*.c") if calls.search(path.read_text())}
    assert found <= {"cmd_probe.c", "listen.c", "notify.c"}, found
