"""`--config FILE` and `--print-command`: the same experiment by a file, by options, and back."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxbig.cli.main import run
from jaxbig.cli.sweep import Sweep
from jaxbig.config.discover import load
from jaxbig.config.overrides import resolve
from jaxbig.config.serialize import to_json
from jaxbig.errors import Refused

NAME = "digits_convnet"
FILE: dict[str, Any] = {
    "steps": 30,
    "deterministic": True,
    "optimizer": {"type": "SGD", "momentum": 0.5, "learning_rate.peak": 0.25},
    "model.layers.0.channels": 8,
    "workdir": "runs/c",
    "smoke": False,
}
OPTIONS = [
    *("--steps=30", "--deterministic", "--optimizer=SGD", "--optimizer.momentum=0.5"),
    *("--optimizer.learning-rate.peak=0.25", "--model.layers.0.channels=8"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(json.dumps(FILE))


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The command that `--print-command` prints, and that it prints nothing else."""

    def carry_out(*words: str) -> list[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run([*words, "--print-command"])
        assert not ended.value.code
        (line,) = capsys.readouterr().out.splitlines()
        return shlex.split(line)

    return carry_out


def test_file_gives_the_options_that_are_in_it() -> None:
    assert resolve(NAME, ["--config", "c.json"]) == resolve(NAME, OPTIONS)
    assert resolve(NAME, ["--config=c.json", "--smoke"]) == resolve(NAME, OPTIONS)


def test_option_that_is_given_wins_wherever_it_stands() -> None:
    for words in (["--steps", "7", "--config", "c.json"], ["--config=c.json", "--steps=7"]):
        assert resolve(NAME, words) == resolve(NAME, [*OPTIONS[1:], "--steps=7"])
    assert not resolve(NAME, ["--config=c.json", "--no-deterministic"]).deterministic


def test_run_json_gives_its_experiment_and_options_come_on_top() -> None:
    experiment = resolve(NAME, OPTIONS)
    for content in ({"experiment": to_json(experiment)}, to_json(experiment)):
        Path("run.json").write_text(json.dumps(content))
        assert resolve(NAME, ["--config", "run.json"]) == experiment
        assert resolve(NAME, ["--config", "run.json", "--seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"--config x\.json: No such file"),
        ("{", r"--config x\.json: it is not JSON"),
        ("[1]", r"--config x\.json: it must be \{option: value\}"),
        ('{"stpes": 3}', r"--config x\.json: there is no option --stpes; the nearest is --steps"),
        ('{"steps": "many"}', r"--config x\.json: --steps"),
        ('{"a b": 3}', "'a b' is no name of an option"),
    ],
)
def test_file_that_cannot_be_used_is_refused_by_name(content: str | None, message: str) -> None:
    if content is not None:
        Path("x.json").write_text(content)
    with pytest.raises(Refused, match=message):
        resolve(NAME, ["--config", "x.json"])


def test_wrong_option_beside_a_file_is_not_said_to_be_in_it() -> None:
    with pytest.raises(Refused, match=r"^there is no option --stpes"):
        resolve(NAME, ["--config", "c.json", "--stpes", "3"])


def test_printed_command_needs_no_file_and_gives_the_same(printed: Any) -> None:
    words = printed("train", NAME, "--config", "c.json", "--seed", "3")
    assert words[:3] == ["jaxbig", "train", NAME] and "--workdir=runs/c" in words
    assert not any(word.startswith("--config") for word in words)
    assert len(words) == len(set(words))
    assert resolve(NAME, words[3:]) == resolve(NAME, [*OPTIONS, "--seed=3"])
    assert printed(*words[1:]) == words


def test_printed_command_has_the_options_of_its_command(printed: Any) -> None:
    words = printed("data", "inspect", NAME, "--step", "3", "--seed", "0", "--data.batch=16")
    assert words == ["jaxbig", "data", "inspect", NAME, "--data.batch=16", "--step", "3"]


def test_experiment_that_no_option_gives_is_refused(printed: Any) -> None:
    other = {"experiment": to_json(load("digits_rnn"))}
    Path("run.json").write_text(json.dumps(other))
    with pytest.raises(Refused, match="no options turn digits_convnet into this experiment"):
        printed("train", NAME, "--config", "run.json")


def test_wrong_experiment_is_refused_and_not_printed() -> None:
    with pytest.raises(Refused, match=r"--data\.batch 0"):
        run(["train", NAME, "--data.batch", "0", "--print-command"])


def test_runs_of_a_sweep_get_the_file() -> None:
    words = ("--config", "c.json", "--set", "seed=0,1")
    sweep = Sweep(name=NAME, options=words, experiment=load(NAME))
    assert sweep.common_options() == ["--config", "c.json"]
