"""Allowed values of fields: ranges of numbers, written in their types and checked, and choices.

A constraint is part of the annotation, as in `depth: PositiveInt = 6` or
`share: Annotated[float, Range(float, gt=0, le=1)] = 0.9`; `--help` shows it with the option.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import operator
import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

import flax.linen as nn
from flax import nnx
from tyro.constructors import PrimitiveConstructorSpec

from jaxbig.errors import Refused


def _matches(kind: type, value: Any) -> Any:
    """Whether a default is of this type; "~": an int where a float is expected."""
    if type(value) is int and kind is float:
        return "~"
    return issubclass(type(value), kind)


def _read(kind: type[int] | type[float], words: list[str]) -> float:
    """A number from the command line; tyro prints the message of a ValueError."""
    try:
        return kind(words[0])
    except ValueError:
        noun = "whole number" if kind is int else "number"
        raise ValueError(f"{words[0]!r} is not a {noun}") from None


class Range(PrimitiveConstructorSpec[Any]):
    """Bounds of a number: checked by `validate`, and shown in `--help` (so a tyro constructor)."""

    given: dict[str, float]
    """The bounds that there are, by their sign."""
    kind: type[int] | type[float]
    """The type of the field."""

    def __init__(
        self,
        kind: type[int] | type[float],
        *,
        ge: float | None = None,
        gt: float | None = None,
        le: float | None = None,
        lt: float | None = None,
    ):
        """
        Args:
          kind: int or float, the type of the field.
          ge: the least value allowed.
          gt: the value must be above this.
          le: the largest value allowed.
          lt: the value must be below this.
        """
        bounds = {">=": ge, ">": gt, "<=": le, "<": lt}
        given = {sign: bound for sign, bound in bounds.items() if bound is not None}
        shown = ", ".join(f"{sign} {bound}" for sign, bound in given.items())
        super().__init__(
            nargs=1,
            metavar=f"{kind.__name__.upper()} {shown}".strip(),
            instance_from_str=functools.partial(_read, kind),
            is_instance=functools.partial(_matches, kind),
            str_from_instance=lambda value: [str(value)],
        )
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "kind", kind)

    def __repr__(self) -> str:
        return f"Range({self.metavar})"

    def __contains__(self, value: float) -> bool:
        return all(COMPARE[sign](value, bound) for sign, bound in self.given.items())

    def __str__(self) -> str:
        """The rule in words, as "0 or more and below 1"."""
        if self.given.keys() == {">=", "<="}:
            return f"{self.given['>=']} to {self.given['<=']}"
        return " and ".join(WORDS[sign].format(bound) for sign, bound in self.given.items())


COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
WORDS = {">=": "{} or more", ">": "above {}", "<=": "at most {}", "<": "below {}"}

PositiveInt = Annotated[int, Range(int, ge=1)]
NonNegativeInt = Annotated[int, Range(int, ge=0)]
PositiveFloat = Annotated[float, Range(float, gt=0)]
NonNegativeFloat = Annotated[float, Range(float, ge=0)]
AtLeastOne = Annotated[float, Range(float, ge=1)]
Fraction = Annotated[float, Range(float, gt=0, le=1)]
"""A part of a whole, not none of it."""
Probability = Annotated[float, Range(float, ge=0, le=1)]
FractionBelowOne = Annotated[float, Range(float, ge=0, lt=1)]
"""A part that leaves something over: of examples held out, of a running mean, of label
smoothing."""
DropRate = FractionBelowOne
Seed = Annotated[int, Range(int, ge=0, lt=2**32)]


def validate(value: Any, path: str = "", annotation: Any = None) -> None:
    """Checks the numbers of a config and of all that it contains.

    Each number must be finite and in the `Range` of its field. A dataclass with rules across its
    fields has a method `check_fields`, which raises `Refused` with a message that starts with the
    field's name; it is called once the fields themselves have passed.

    Args:
      value: a dataclass (a Flax module is one), or a field's value.
      path: the name of its option, as "model.layers.0"; "" for the experiment itself.
      annotation: the type of the field that holds it.

    Raises:
      Refused: for the first wrong number; the message starts with its option.
    """
    if isinstance(value, int | float):
        _check_number(value, path, annotation)
    elif _is_of_number(annotation) and not isinstance(value, numbers.Number):
        [rule] = _alternatives(annotation)
        raise Refused(f"{_option(path)} {value!r}: it must be a number, {rule[0]}.")
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            validate(item, _join(path, key), _item_annotation(annotation, key))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        annotations = annotations_of(type(value))
        for name in settings(value):
            validate(getattr(value, name), _join(path, name), annotations.get(name))
        check_fields: Any = getattr(value, "check_fields", None)
        if check_fields is not None:
            try:
                check_fields()
            except Refused as error:
                field, _, rest = str(error).partition(" ")
                raise Refused(f"{_option(_join(path, field))} {rest}") from None


def settings(config: Any) -> list[str]:
    """The fields of a config or its class that are set: a Flax module's own are left out."""
    kind = config if isinstance(config, type) else type(config)
    hidden = ("parent", "name") if issubclass(kind, nn.Module) else ()
    if issubclass(kind, nnx.bridge.ToLinen):
        hidden = (*hidden, "metadata_fn")
    fields = dataclasses.fields(kind)
    return [field.name for field in fields if field.init and field.name not in hidden]


def check_ascending(config: Any, *, low: str, high: str) -> None:
    """Raises `Refused` where the field `low` is above the field `high`."""
    value = getattr(config, low)
    top = getattr(config, high)
    if value > top:
        raise Refused(f"{low} {value}: it must be at most its {high}, {top}.")


def _check_number(value: float, path: str, annotation: Any) -> None:
    """Raises `Refused` unless one alternative of the annotation allows the number."""
    rules = [_broken_rule(value, ranges) for ranges in _alternatives(annotation) or [[]]]
    if None not in rules:
        raise Refused(f"{_option(path)} {value}: it must be {rules[0]}.")


def _broken_rule(value: float, ranges: list[Range]) -> str | None:
    if not math.isfinite(value):
        return "a finite number"
    if isinstance(value, float) and any(allowed.kind is int for allowed in ranges):
        return f"a whole number, {ranges[0]}"
    return next((str(allowed) for allowed in ranges if value not in allowed), None)


def _alternatives(annotation: Any) -> list[list[Range]]:
    """The ranges of each kind of number that an annotation allows; `PositiveInt | None` has one."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        own = [each for each in metadata if isinstance(each, Range)]
        return [[*ranges, *own] for ranges in _alternatives(inner)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [ranges for part in get_args(annotation) for ranges in _alternatives(part)]
    return [[]] if annotation in (int, float) else []


def _is_of_number(annotation: Any) -> bool:
    """Whether a type has numbers of a range alone."""
    return get_origin(annotation) is Annotated and any(_alternatives(annotation))


def _item_annotation(annotation: Any, key: Any) -> Any:
    """The type of an item of a tuple, list or dictionary, where the annotation gives it."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return _item_annotation(arguments[0], key)
    if origin in (Union, types.UnionType):
        found = (_item_annotation(part, key) for part in arguments)
        return next((item for item in found if item is not None), None)
    if origin is tuple and Ellipsis not in arguments:
        return arguments[key] if key < len(arguments) else None
    if origin is dict:
        return arguments[1]
    return arguments[0] if arguments and origin in (tuple, list, Sequence) else None


@functools.cache
def annotations_of(config: type) -> dict[str, Any]:
    """The types of a class's fields; one declared again without a range keeps its base's."""
    found: dict[str, Any] = {}
    for base in reversed(config.__mro__):
        for name, annotation in _own_annotations(base).items():
            if name not in found or _has_range(annotation) or not _has_range(found[name]):
                found[name] = annotation
    return found


def _own_annotations(config: type) -> dict[str, Any]:
    """The types that a class itself declares; a name that only type checkers know is `Any`."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return inspect.get_annotations(config, locals=unknown, eval_str=True)
        except NameError as error:
            if error.name is None or error.name in unknown:
                raise
            unknown[error.name] = Any


def _has_range(annotation: Any) -> bool:
    arguments = get_args(annotation)
    return any(isinstance(each, Range) or _has_range(each) for each in arguments)


def _option(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def choose(field: str, value: str, choices: Any) -> Any:
    """Looks up the value of a field among its choices.

    Args:
      field: its name, for the message.
      value: its value.
      choices: a Literal, a tuple, or a table.

    Returns:
      The table's entry, or `value` itself.

    Raises:
      Refused: if the value is not one of the choices.
    """
    names = list(choices) if isinstance(choices, dict | tuple) else get_args(choices)
    if value not in names:
        raise Refused(f"{field} {value!r}: it must be one of {', '.join(map(str, names))}.")
    return choices[value] if isinstance(choices, dict) else value
