"""Options from the environment: every option of every subcommand has a variable."""

import os
import re

import pytest

import gptd

SUBCOMMANDS = re.findall(r"^  (\w+) +[a-z]", gptd.run("--help").stdout, re.M)


def with_variables(**variables):
    return {**os.environ, **variables}


def options_of(subcommand):
    help_text = gptd.run(subcommand, "--help").stdout
    return re.findall(r"^  --([a-z0-9-]+)", help_text, re.M)


def test_help_mentions_the_environment_once():
    for subcommand in SUBCOMMANDS:
        assert gptd.run(subcommand, "--help").stdout.count("GPTD_SOME_NAME") == 1, subcommand


def test_no_option_of_one_subcommand_is_a_slip_for_another():
    """A container's variables are those of `serve`: `gptd plan` in it takes no notice of them."""
    names = {name for subcommand in SUBCOMMANDS for name in options_of(subcommand)}
    assert {"memory-budget", "learning-rate", "api-key-file"} <= names
    variables = {"GPTD_" + name.upper().replace("-", "_"): "" for name in names}
    for subcommand in SUBCOMMANDS:
        ended = gptd.run(subcommand, "--help", env=with_variables(**variables))
        assert (ended.returncode, ended.stderr) == (0, ""), subcommand


def test_the_command_line_counts_over_the_environment():
    model = str(gptd.MODEL)
    ended = gptd.run("generate", "--max-new-tokens", 3, env=with_variables(
        GPTD_MODEL=model, GPTD_PROMPT="ROMEO:", GPTD_MAX_NEW_TOKENS="5000000", GPTD_SEED="7"))
    assert ended.returncode == 0, ended.stderr
    same = gptd.run("generate", "--model", model, "--prompt", "ROMEO:", "--seed", 7,
                    "--max-new-tokens", 3)
    assert ended.stdout == same.stdout


@pytest.mark.parametrize("variable, said", [
    ("GPTD_MAX_NEW_TOKENS=x", "GPTD_MAX_NEW_TOKENS in the environment"),
    ("GPTD_SPECULATION=1", None),
    ("GPTD_MAX_NEW_TOKEN=1", "did you mean GPTD_MAX_NEW_TOKENS?"),
])
def test_mistakes_name_the_variable(variable, said):
    name, value = variable.split("=")
    ended = gptd.run("generate", "--model", gptd.MODEL, "--prompt", "A", "--max-new-tokens", 1,
                     env=with_variables(**{name: value}))
    if said is None:
        assert (ended.returncode, ended.stderr) == (0, "")
    else:
        assert said in ended.stderr
