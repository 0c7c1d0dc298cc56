"""The help of each command: every field has a text, of few lines, that no line break cuts."""

import dataclasses
import importlib
import inspect
import itertools
import pkgutil
import re
from typing import Any

import flax.linen as nn
import pytest
from support.experiments import EXPERIMENTS

import jaxbig
from jaxbig.cli.main import run
from jaxbig.config.help_texts import class_summary, field_help

ROOMS = ("config", "data", "distributed.mesh", "models", "objectives", "optim")
"""The rooms whose classes an experiment contains."""
INTERNAL = {"Context", "Continued", "PartReader", "Round", "Sum"}
"""Dataclasses of these rooms that are values inside a program, and no part of an experiment."""
MOST_LINES = 4
"""Of an option at 80 columns, its name's line included."""


def parts() -> list[type]:
    """The dataclasses that an experiment may contain, those inside a model included."""
    found: dict[type, None] = {}
    for each in pkgutil.walk_packages(jaxbig.__path__, "jaxbig."):
        if each.name.removeprefix("jaxbig.").startswith(ROOMS):
            for owner in vars(importlib.import_module(each.name)).values():
                if inspect.isclass(owner) and owner.__module__ == each.name:
                    found[owner] = None
    return [
        owner
        for owner in found
        if dataclasses.is_dataclass(owner)
        and owner.__name__ not in INTERNAL
        and not owner.__name__.startswith("_")
    ]


def texts(owner: Any) -> dict[str, str]:
    hidden = ("parent", "name") if issubclass(owner, nn.Module) else ()
    names = [field.name for field in dataclasses.fields(owner) if field.init]
    return {name: field_help(owner, name) for name in names if name not in hidden}


@pytest.mark.parametrize("owner", parts(), ids=lambda owner: f"{owner.__module__}.{owner.__name__}")
def test_every_field_that_an_experiment_can_have_has_a_help_text(owner: type) -> None:
    assert [name for name, text in texts(owner).items() if not text] == []
    assert class_summary(owner)


def rendered(
    arguments: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> list[str]:
    """The lines of a help text in a terminal of this width, without boxes and colors."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run([*arguments.split(), "--help"])
    assert stop.value.code in (0, None)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    return [line.strip("│╭╮╰╯─").rstrip() for line in text.splitlines()]


def options(lines: list[str]) -> dict[str, list[str]]:
    """The lines of each option, its name's line first."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        if re.match(" +--?[a-z]", line):
            name = line.split()[0]
            found[name] = [line]
        elif name and line.startswith("       "):
            found[name].append(line)
        else:
            name = ""
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_of_an_option_is_four_lines_at_80_columns_and_fills_them(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = options(rendered(f"train {name}", 80, monkeypatch, capsys))
    assert {"--steps", "--data.batch", "--workdir"} <= found.keys()
    assert {each: lines for each, lines in found.items() if len(lines) > MOST_LINES} == {}
    for each, (_, *text) in found.items():
        for line, after in itertools.pairwise(text):
            first = after.split()[0]
            assert len(line) + 1 + len(first) > 75, (each, line, after)  # no word more fits


@pytest.mark.parametrize(
    ("command", "option"),
    [("train", "--fork"), ("plan", "--topology STR"), ("data inspect", "--split"), ("show", "")],
)
def test_help_of_a_command_without_an_experiment_lists_its_own_options(
    command: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = "\n".join(rendered(command, 80, monkeypatch, capsys))
    assert option in text and "--json" in text and "--steps INT" not in text
    assert f"usage: jaxbig {command} EXPERIMENT" in text
    assert " ".join(text.split()).count(f"jaxbig {command} NAME --help") == 1


def test_group_of_options_is_headed_by_its_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = "\n".join(rendered("train digits_convnet", 120, monkeypatch, capsys))
    assert " Conv: Convolution, then ReLU.\n" in text
    assert " AdamW: Adam with decoupled weight decay" in text
