"""Options that give a part of an experiment another type, as `--optimizer SGD`."""

import dataclasses

import optax
import pytest

from jaxbig.config.deserialize import from_json
from jaxbig.config.discover import load
from jaxbig.config.overrides import resolve
from jaxbig.config.part_types import change_types, types_of
from jaxbig.config.serialize import to_json
from jaxbig.errors import Refused
from jaxbig.optim.optimizers import SGD, AdamW, Optimizer
from jaxbig.optim.schedules import Schedule, WarmupCosine, WarmupLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignDescent(Optimizer):
    """An optimizer of the user's own."""

    strength: float

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_sign()


@pytest.mark.parametrize("words", [["--optimizer", "SGD"], ["--optimizer=sgd"]])
def test_type_option_changes_the_type_and_keeps_the_shared_fields(words: list[str]) -> None:
    before = load("digits_convnet")
    found = resolve("digits_convnet", [*words, "--optimizer.momentum", "0.8", "--steps", "3"])
    assert isinstance(before.optimizer, AdamW) and before.optimizer.weight_decay == 0.05
    assert found.optimizer == SGD(learning_rate=before.optimizer.learning_rate, momentum=0.8)
    assert found.steps == 3
    saved = to_json(found)
    assert saved["optimizer"]["type"] == "SGD" and from_json(saved) == found


def test_type_of_a_schedule_and_of_its_optimizer_change_in_any_order() -> None:
    words = ["--optimizer.learning-rate=WarmupLinear", "--optimizer", "SGD"]
    found = resolve("digits_convnet", words)
    assert found == resolve("digits_convnet", [*words[1:], words[0]])
    schedule = found.optimizer.learning_rate
    assert isinstance(found.optimizer, SGD) and isinstance(schedule, WarmupLinear)
    assert (schedule.peak, schedule.warmup) == (2e-3, 50)


def test_its_own_type_changes_nothing() -> None:
    before = load("digits_convnet")
    assert change_types(before, ["--optimizer", "adamw", "--seed", "3"]) == (
        before,
        ["--seed", "3"],
    )


def test_field_that_the_new_type_needs_is_an_option_that_must_be_given() -> None:
    with pytest.raises(Refused, match=r"needs --optimizer.strength"):
        resolve("digits_convnet", ["--optimizer", "SignDescent"])
    found = resolve("digits_convnet", ["--optimizer", "signdescent", "--optimizer.strength", "2"])
    assert isinstance(found.optimizer, SignDescent) and found.optimizer.strength == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--optimizer", "adam-w"],
            "--optimizer 'adam-w': the nearest is AdamW; it must be one of",
        ),
        (["--optimizer=qqq"], "--optimizer 'qqq': it must be one of SGD, Adam, AdamW"),
        (["--optimizer"], "--optimizer needs a type: SGD, Adam"),
        (["--optimizer", "--steps", "3"], "--optimizer needs a type: SGD, Adam"),
        (["--optimizer.learning-rate", "SGD"], "--optimizer.learning-rate 'SGD': .* Constant"),
        (["--optimizer", "SGD", "--optimizer.b1", "0.8"], "there is no option --optimizer.b1"),
        (["--model", "MLP"], "there is no option --model: it has options of its own"),
    ],
)
def test_type_that_a_part_cannot_have_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        resolve("digits_convnet", words)


def test_types_are_the_concrete_classes_below_a_base() -> None:
    assert {"SGD", "AdamW", "SignDescent"} <= types_of(Optimizer).keys()
    schedules = types_of(Schedule)
    assert schedules["WarmupCosine"] is WarmupCosine and not {"Schedule", "Warmup"} & {*schedules}
