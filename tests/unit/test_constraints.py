"""Constraints of fields: what they refuse, and what they leave alone."""

import dataclasses
import math
import sys
import types
from typing import Annotated, Any, Literal

import flax.linen as nn
import pytest
import tyro

from jaxbig.constraints import (
    DropRate,
    Fraction,
    NonNegativeInt,
    PositiveInt,
    Range,
    check_ascending,
    validate,
)
from jaxbig.errors import Refused
from jaxbig.models.language_model import Decoder


class Own(nn.Module):
    """A model with fields whose names mean something else elsewhere."""

    rate: int = 2
    """Dilation."""
    ratio: float = 0.25
    floor: float = -80.0
    momentum: float = 1.0
    num_heads: PositiveInt = 4
    """Heads of attention."""
    groups: PositiveInt | None = None
    padding: Literal["same", "valid"] | NonNegativeInt = "same"
    widths: tuple[PositiveInt, ...] = (8, 8)
    span: tuple[float, DropRate] = (5.0, 0.5)
    sizes: dict[str, PositiveInt] | None = None
    share: Annotated[Fraction, Range(float, le=0.5)] = 0.5
    cap: Annotated[float, Range(float, ge=0)] = 1.0
    inner: Any = None
    low: float = 0.0
    high: float = 1.0

    def check_fields(self) -> None:
        check_ascending(self, low="low", high="high")


WRONG = {
    "num-heads -3: it must be 1 or more": {"num_heads": -3},
    "groups 0: it must be 1 or more": {"groups": 0},
    "padding -1: it must be 0 or more": {"padding": -1},
    "widths.1 0: it must be 1 or more": {"widths": (8, 0)},
    "span.1 1.0: it must be 0 or more and below 1": {"span": (5.0, 1.0)},
    "sizes.a 0: it must be 1 or more": {"sizes": {"a": 0}},
    "share 0.75: it must be at most 0.5": {"share": 0.75},
    "share 0: it must be above 0 and at most 1": {"share": 0},
    "cap -1: it must be 0 or more": {"cap": -1},
    "cap nan: it must be a finite number": {"cap": math.nan},
    "cap inf: it must be a finite number": {"cap": math.inf},
    "ratio inf: it must be a finite number": {"ratio": math.inf},
    "num-heads None: it must be a number, 1 or more": {"num_heads": None},
    "num-heads '8': it must be a number, 1 or more": {"num_heads": "8"},
    "num-heads 8.0: it must be a whole number, 1 or more": {"num_heads": 8.0},
    "cap []: it must be a number, 0 or more": {"cap": []},
    "inner.0.num-heads 0: it must be 1 or more": {"inner": (Own(num_heads=0),)},
    "inner.low 3: it must be at most its high, 2": {"inner": Own(low=3, high=2)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_number_is_refused_by_its_option(message: str) -> None:
    with pytest.raises(Refused) as refused:
        validate(Own(**WRONG[message]), "model")
    assert str(refused.value) == f"--model.{message}."


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rate": 16_000, "ratio": -0.5, "floor": -1e-9, "momentum": 2.0},
        {"groups": 3, "padding": 0, "sizes": {"a": 1}},
        {"padding": "valid", "inner": [Own(), "text", None]},
    ],
    ids=str,
)
def test_fields_without_constraint_keep_their_own_meaning(fields: dict[str, Any]) -> None:
    validate(Own(**fields))


def test_inherited_constraint_holds_where_annotations_cannot_be_resolved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("typed_for_checkers")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = {"__annotations__": {"extra": "OnlyForCheckers"}, "__module__": module.__name__}
    variant = dataclasses.dataclass(type("Variant", (Decoder,), names | {"extra": None}))
    validate(variant(vocab=5))
    with pytest.raises(Refused, match=r"--heads 0: it must be 1 or more"):
        validate(variant(vocab=5, heads=0))


def test_constraint_holds_in_a_subclass_that_declares_the_field_again() -> None:
    @dataclasses.dataclass
    class Wider(Own):
        num_heads: int = 4

    validate(Wider(num_heads=5))
    with pytest.raises(Refused, match=r"--num-heads -3: it must be 1 or more"):
        validate(Wider(num_heads=-3))


def test_constraint_holds_beside_a_field_whose_type_cannot_be_resolved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("typed_by_text")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module)["PositiveInt"] = PositiveInt
    texts = {"extra": "OnlyForCheckers | None", "count": "PositiveInt"}
    names = {"__annotations__": texts, "__module__": module.__name__, "extra": None, "count": 1}
    config = dataclasses.dataclass(type("Config", (), names))
    validate(config(count=2))
    with pytest.raises(Refused, match=r"--count 0: it must be 1 or more"):
        validate(config(count=0))


def test_help_shows_the_range_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Own, args=["--help"], config=(tyro.conf.AvoidSubcommands,))
    shown = capsys.readouterr().out
    assert "--num-heads INT >= 1" in shown
    assert "--cap FLOAT >= 0" in shown
    assert "--groups {None}|{INT >= 1}" in shown


def test_command_line_parses_constrained_numbers() -> None:
    options = ["--num-heads", "2", "--widths", "4", "5", "--groups", "None", "--padding", "3"]
    own = tyro.cli(Own, args=options)
    assert (own.num_heads, own.widths, own.groups, own.padding) == (2, (4, 5), None, 3)
