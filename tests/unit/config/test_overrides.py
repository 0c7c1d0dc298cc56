"""Unknown options and the nearest known ones, addresses given as folders, proposed commands."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from jaxbig.cli.compare import Compare
from jaxbig.cli.data import DataInspect
from jaxbig.cli.train import Train
from jaxbig.config.discover import load
from jaxbig.config.options import lasting, parse, run_name, without
from jaxbig.config.overrides import resolve
from jaxbig.errors import Refused


def train(name: str, *options: str) -> Train:
    made = Train(name=name, options=tuple(options), experiment=load(name))
    return parse(Train, options, f"train {name}", made)


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("--learning-rate", "--optimizer.learning-rate.peak"),
        ("--learning_rate", "--optimizer.learning-rate.peak"),
        ("--lr", "--optimizer.learning-rate.peak"),
        ("--batch-size", "--data.batch"),
        ("--epochs", "--steps"),
        ("--max-steps", "--steps"),
        ("--stesp", "--steps"),
        ("--wrokdir", "--workdir"),
        ("--data.btach", "--data.batch"),
        ("--btach", "--data.batch"),
        ("--model.layers.9.channels", "--model.layers.0.channels"),
        ("--coordinater", "--coordinator"),
        ("--verbose", ""),
        ("--debug", ""),
        ("--gpus", ""),
        ("--config", ""),
        ("--wandb", ""),
        ("--x", ""),
    ],
)
@pytest.mark.parametrize("value", [[], ["3"], ["=3"]], ids=["alone", "apart", "joined"])
def test_an_unknown_option_names_the_nearest_known_option_or_none(
    option: str, near: str, value: list[str]
) -> None:
    words = [option + value[0]] if value == ["=3"] else [option, *value]
    with pytest.raises(Refused) as refused:
        train("digits_convnet", *words)
    said = str(refused.value)
    assert option in said.replace("_", "-") or option in said
    found = said.split("the nearest are ")[1].split(";")[0].split(", ") if "nearest" in said else []
    assert (found or [""])[0] == near, said


@pytest.mark.parametrize(
    "address", ["gs://bucket/x", "s3://bucket/x", "hdfs://host:1/x", "file:///x", "https://x/y"]
)
def test_an_address_is_no_folder(address: str) -> None:
    message = rf"{address.replace('///', '//')}: runs are kept in folders.*mount"
    with pytest.raises(Refused, match=f"--workdir {message}"):
        train("digits_convnet", "--workdir", address)
    with pytest.raises(Refused, match=f"--workdir {message}"):
        resolve("digits_convnet", ["--workdir", address])  # as a launcher reads it
    with pytest.raises(Refused, match=f"--workdirs {message}"):
        parse(Compare, ["here", address], "compare")
    inspect = DataInspect(name="digits_convnet", options=(), experiment=load("digits_convnet"))
    with pytest.raises(Refused, match=f"--picture {message}"):
        parse(DataInspect, ["--picture", address], "data inspect", inspect)


@pytest.mark.parametrize("folder", ["runs/a", "/mnt/gs/a", "a:b", "C", "x.y/z"])
def test_a_folder_is_a_folder(folder: str) -> None:
    assert train("digits_convnet", "--workdir", folder).workdir == Path(folder)


@pytest.mark.parametrize(
    ("options", "repeated"),
    [
        ([], ["--seed", "1", "--workdir", "runs/digits_convnet-seed1"]),
        (["--seed", "1", "--workdir", "A"], ["--seed", "2", "--workdir", "A-seed2"]),
        (["--seed=1", "--workdir=A-seed1"], ["--seed", "2", "--workdir", "A-seed2"]),
        (
            ["--steps", "20", "--seed", "4"],
            ["--steps", "20", "--seed", "5", "--workdir", "runs/digits_convnet-seed5"],
        ),
        (["--workdir", "a b/$(id)"], ["--seed", "1", "--workdir", "a b/$(id)-seed1"]),
        (
            ["--fork", "--adopt", "--data.batch=8"],
            ["--data.batch=8", "--seed", "1", "--workdir", "runs/digits_convnet-seed1"],
        ),
    ],
)
def test_commands_that_are_proposed_replace_options_and_can_be_pasted(
    options: list[str], repeated: list[str]
) -> None:
    run = train("digits_convnet", *options)
    hints = [shlex.split(hint) for hint in run.hints()]
    assert hints[0] == ["jaxbig", "evaluate", "digits_convnet", *lasting(options)]
    assert hints[1] == ["jaxbig", "train", "digits_convnet", *repeated]
    assert hints[2] == ["jaxbig", "compare", str(run.folder), repeated[-1]]
    again = train("digits_convnet", *repeated)
    assert again.experiment.seed == run.experiment.seed + 1 and str(again.folder) == repeated[
        -1
    ] != str(run.folder)


def test_options_are_left_out_with_their_values() -> None:
    words = ["--a", "1", "--b=2", "--seed", "--seed", "3", "--fork", "--c", "--fork"]
    assert without(words, ("--a", "--b", "--seed")) == ["3", "--fork", "--c", "--fork"]
    assert without(words, ("--c",), ("--fork",)) == ["--a", "1", "--b=2", "--seed", "--seed", "3"]


def test_experiments_of_other_names_have_folders_of_other_names() -> None:
    names = [
        "a.py",
        "v1.0.py",
        "v2.0.py",
        "folder/b.py",
        "pkg.module",
        "digits_convnet",
        "my.exp.py",
    ]
    assert [run_name(name) for name in names] == [
        "a",
        "v1.0",
        "v2.0",
        "b",
        "module",
        "digits_convnet",
        "my.exp",
    ]


def folder_of(options: list[str]) -> Any:
    return train("digits_convnet", *options).folder


def test_a_run_without_a_folder_has_one_in_runs() -> None:
    assert folder_of([]) == Path("runs/digits_convnet")
