"""Unknown options and the nearest known ones, addresses given as folders, proposed commands."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.experiments import EXPERIMENTS

from jaxbig.cli.compare import Compare
from jaxbig.cli.data import DataInspect
from jaxbig.cli.flags import Flags
from jaxbig.cli.sweep import Sweep
from jaxbig.cli.train import Train
from jaxbig.config.discover import load
from jaxbig.config.options import lasting, option_names, parse, run_name, without
from jaxbig.config.overrides import resolve
from jaxbig.config.spellings import NOTES, SPELLINGS
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
        ("--num-epochs", "--epochs"),
        ("--max-steps", "--steps"),
        ("--stesp", "--steps"),
        ("--wrokdir", "--workdir"),
        ("--data.btach", "--data.batch"),
        ("--btach", "--data.batch"),
        ("--model.layers.9.channels", "--model.layers.0.channels"),
        ("--coordinater", "--coordinator"),
        ("--bs", "--data.batch"),
        ("--wd", "--optimizer.weight-decay"),
        ("--optimizer.lr", "--optimizer.learning-rate.peak"),
        ("--max_steps", "--steps"),
        ("--output_dir", "--workdir"),
        ("--eval-steps", "--evaluate-every"),
        ("--LR", "--optimizer.learning-rate.peak"),
        ("--num-heads", ""),
        ("--early-stopping", "--patience"),
        ("--profiler", "--profile"),
        ("--debug", ""),
        ("--gpus", ""),
        ("--configs", "--config"),
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
    named = re.search("the nearest (?:is|are) ([^;]*);", said)
    found = named[1].split(", ") if named else []
    assert (found or [""])[0] == near, said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stesp 3", "there is no option --stesp; the nearest is --steps; `jaxbig train"),
        ("--foo 3 --bar=4", "there are no options --foo, --bar; `jaxbig train"),
        ("--steps", "--steps needs a value, INT >= 1; `jaxbig train digits_convnet --help` lists"),
        ("--steps 3.5", "--steps: '3.5' is not a whole number; "),
        ("--optimizer.b1 much", "--optimizer.b1: 'much' is not a number; "),
        ("--precision.sums int8", "--precision.sums 'int8': it must be one of dtype, float32; "),
        ("extra", "'extra' is not expected here: an option is --name value, a flag is --name; "),
        ("--steps 3 4", "'4' is not expected here: "),
        ("--model 3", "there is no option --model: it has options of its own, as --model.layers."),
        ("--device cpu", "there is no option --device: JAX uses all devices .* JAX_PLATFORMS=cpu"),
        ("--gpus=2", "there is no option --gpus: JAX uses all devices"),
        ("--nodes 2", "there is no option --nodes: .*jaxbig.launch.slurm"),
    ],
)
def test_wrong_option_is_refused_in_a_sentence(words: str, said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        train("digits_convnet", *words.split())
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_missing_argument_is_named_with_its_help() -> None:
    with pytest.raises(
        Refused, match=r"flags needs CHIP: v4, v5e, .*; `jaxbig flags --help` lists"
    ):
        parse(Flags, [], "flags")
    with pytest.raises(Refused, match="there is no option --jsn; the nearest is --json;"):
        parse(Flags, ["v5p", "--jsn"], "flags")


def test_renamed_option_is_suggested_by_its_name_on_the_command_line() -> None:
    sweep = Sweep(name="digits_rnn", options=(), experiment=load("digits_rnn"))
    with pytest.raises(Refused, match="no option --sets; the nearest is --set;"):
        parse(Sweep, ["--sets", "a=1"], "sweep digits_rnn", sweep)


def test_every_spelling_leads_to_an_option_that_some_experiment_has() -> None:
    own = "--data.records.folder"  # of experiments of one's own
    known = {
        option
        for name in EXPERIMENTS
        for option in option_names(Train, Train(name=name, options=(), experiment=load(name)))
    }
    assert {f"--{name}" for name in SPELLINGS} - known <= {"--optimizer", "--step", own}
    spelled = [word for others in SPELLINGS.values() for word in others.split()]
    assert not {f"--{word}" for word in spelled} & known - {"--workers", "--epochs"}
    assert not {*spelled} & {*NOTES}


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


def test_options_of_a_command_without_an_experiment_are_its_own() -> None:
    assert option_names(Flags) == ["--json", "--quiet", "--verbose"]
    assert "--workdir" in option_names(Train) and "--" not in option_names(Train)
