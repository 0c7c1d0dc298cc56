"""Callbacks: what they see, that they change nothing, and what happens when one fails."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.experiments import small

from jaxbig.config.callback import Callback
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import to_json
from jaxbig.errors import Refused
from jaxbig.models.convnet import ConvNet, Dense
from jaxbig.tracking.console import Screen
from jaxbig.train.trainer import fit


def tiny(**changes: Any) -> Experiment:
    """Four steps on digits, evaluated and saved every two."""
    fields: dict[str, Any] = {
        "model": ConvNet(layers=(Dense(16),), classes=10),
        "steps": 4,
        "evaluate_every": 2,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    return small("digits_convnet", **{**fields, **changes})


@dataclasses.dataclass(frozen=True)
class Recording(Callback):
    """Notes each call."""

    every: int = 1
    calls: list[tuple[Any, ...]] = dataclasses.field(default_factory=list, init=False)

    def start(self, step: int, state: Any) -> None:
        self.calls.append(("start", step, int(state.step)))

    def after_step(self, step: int, metrics: Mapping[str, Any], state: Any) -> None:
        self.calls.append(("step", step, int(state.step), float(metrics["loss"])))

    def after_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls.append(("evaluation", step, metrics["loss"]))

    def after_save(self, step: int, directory: Path) -> None:
        self.calls.append(("save", step, (directory / "jaxbig.json").is_file()))

    def end(self, step: int) -> None:
        self.calls.append(("end", step))


@dataclasses.dataclass(frozen=True)
class Failing(Callback):
    """Fails in one method."""

    method: str

    def __getattribute__(self, name: str) -> Any:
        if name == object.__getattribute__(self, "method"):
            raise ZeroDivisionError(name)
        return object.__getattribute__(self, name)


@pytest.fixture(scope="module")
def recorded(
    shared_programs: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Recording, dict[str, Any]]:
    """The folder, the callback and the summary of a run."""
    folder = tmp_path_factory.mktemp("recorded")
    callback = Recording()
    return folder, callback, fit(tiny(callbacks=(callback,)), folder, Screen(quiet=True))


def test_callback_sees_each_step_evaluation_and_save_in_order(
    recorded: tuple[Path, Recording, dict[str, Any]],
) -> None:
    folder, callback, _ = recorded
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {(line["split"], line["step"]): line["loss"] for line in lines}
    saves = [call for call in callback.calls if call[0] == "save"]
    others = [call for call in callback.calls if call[0] != "save"]
    assert others == [
        ("start", 0, 0),
        ("step", 1, 1, losses["train", 1]),
        ("step", 2, 2, losses["train", 2]),
        ("evaluation", 2, losses["eval", 2]),
        ("step", 3, 3, losses["train", 3]),
        ("step", 4, 4, losses["train", 4]),
        ("evaluation", 4, losses["eval", 4]),
        ("end", 4),
    ]
    assert saves == [("save", 2, True), ("save", 4, True)]  # a save ends some steps later


def test_callback_changes_no_bit_of_a_run(
    recorded: tuple[Path, Recording, dict[str, Any]], tmp_path: Path
) -> None:
    _, _, summary = recorded
    without = fit(tiny(), tmp_path, Screen(quiet=True))
    assert without["state_sha256"] == summary["state_sha256"]


@pytest.mark.usefixtures("shared_programs")
def test_run_resumes_with_another_callback(tmp_path: Path) -> None:
    fit(tiny(steps=2, callbacks=(Recording(),)), tmp_path, Screen(quiet=True))
    callback = Recording(every=7)
    resumed = fit(tiny(callbacks=(callback,)), tmp_path, Screen(quiet=True))
    assert [call[:2] for call in callback.calls][:2] == [("start", 2), ("step", 3)]
    assert resumed["step"] == 4


@pytest.mark.parametrize("method", ["start", "after_step", "after_evaluation", "after_save", "end"])
@pytest.mark.usefixtures("shared_programs")
def test_error_in_a_callback_ends_the_run_with_it(method: str, tmp_path: Path) -> None:
    other = Recording()
    with pytest.raises(ZeroDivisionError, match=method):
        fit(tiny(callbacks=(other, Failing(method))), tmp_path, Screen(quiet=True))
    assert other.calls[-1][0] == "end"


def test_options_of_a_callback_are_its_fields_without_what_it_collects() -> None:
    callback = Recording(every=3)
    callback.calls.append(("a list of", object()))
    described = to_json(tiny(callbacks=(callback,)))["callbacks"]
    assert described == [{"type": "Recording", "every": 3}]


@pytest.mark.parametrize("wrong", [Recording(), Recording, (print,), (Recording,)])
def test_what_is_no_callback_is_refused(wrong: Any) -> None:
    with pytest.raises(Refused, match=r"callbacks"):
        tiny(callbacks=wrong).check()
