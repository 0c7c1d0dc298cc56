"""The table of commands, and the commands that answer before JAX is imported."""

import importlib
import inspect
import json
import os
import subprocess
import sys

import pytest
from support.experiments import ROOT

from jaxbig.cli.bench import BenchAgainst
from jaxbig.cli.command import Command
from jaxbig.cli.commands import COMMANDS, summary
from jaxbig.cli.main import load, split
from jaxbig.errors import Refused

SLOW = ("jax", "jaxlib", "flax", "optax", "orbax", "numpy", "matplotlib", "tensorflow_datasets")
"""Libraries that take long to import."""
REPORT = """
import json, sys
from jaxbig.__main__ import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--help", "train "),
        ("--version", "jaxbig 0."),
        ("list", "digits_convnet "),
        ("list --json", "A small conv net"),
        ("data", ""),
        ("trian digits_convnet", ""),
    ],
)
def test_command_without_an_experiment_answers_without_jax(line: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *line.split()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (0 if said else 2), done.stderr
    *output, modules = done.stdout.splitlines()
    assert said in "\n".join(output)
    assert "jaxbig" in json.loads(modules) and not {*SLOW} & {*json.loads(modules)}
    assert line == "--version" or "importlib.metadata" not in json.loads(modules)


def test_full_disk_under_standard_output_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "jaxbig", "list"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "jaxbig: the output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_of_a_command_is_the_first_paragraph_of_its_docstring(name: str) -> None:
    command = load(name)
    assert issubclass(command, Command)
    first = (inspect.getdoc(command) or "").split("\n\n")[0]
    assert summary(name) == " ".join(first.split())
    assert 20 < len(summary(name)) <= 100 and summary(name).endswith(".")


def test_every_command_is_in_the_table() -> None:
    modules = [f"jaxbig.cli.{file.stem}" for file in (ROOT / "jaxbig/cli").glob("*.py")]
    defined = [
        each
        for module in modules
        for each in vars(importlib.import_module(module)).values()
        if inspect.isclass(each) and each.__module__ == module
    ]
    runnable = {each for each in defined if issubclass(each, Command) and "__call__" in vars(each)}
    against = BenchAgainst  # what `bench --against` becomes
    assert runnable - {Command, against} == {load(name) for name in COMMANDS}


def test_command_of_two_words_is_split_from_its_arguments() -> None:
    assert split(["data", "inspect", "digits_rnn", "--step", "3"]) == (
        "data inspect",
        ["digits_rnn", "--step", "3"],
    )
    assert split(["list"]) == ("list", [])
    assert split(["list", "data"]) == ("list", ["data"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("data", "data needs a second word: it is jaxbig data prepare or jaxbig data inspect"),
        ("data digits_rnn", "data needs a second word"),
        ("trian x", "no command 'trian': the nearest is train;"),
        ("zzz", "no command 'zzz': the commands are"),
        ("--steps", "no option '--steps'"),
    ],
)
def test_unknown_command_is_refused_with_the_nearest(line: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        split(line.split())
