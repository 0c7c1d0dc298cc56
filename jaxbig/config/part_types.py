"""Changes the type of a part of an experiment by an option, as `--optimizer SGD`."""

import dataclasses
import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import tyro

from jaxbig.config.deserialize import shipped_classes
from jaxbig.config.experiment import Experiment
from jaxbig.constraints import annotations_of, settings
from jaxbig.errors import Refused


def change_types(experiment: Experiment, options: Sequence[str]) -> tuple[Experiment, list[str]]:
    """An experiment whose parts have the types that options give, and the options left.

    Fields that both types have keep their values; the others have their defaults.

    Args:
      experiment: it is not changed.
      options: a type option is the path of a part, as `--optimizer.learning-rate`, and a class.

    Raises:
      Refused: a part cannot have that type.
    """
    left: list[str] = []
    words = list(options)
    while words:
        word = words.pop(0)
        option, joined, name = word.partition("=")
        path = option[2:].replace("-", "_").split(".") if option.startswith("--") else []
        if not _is_part(experiment, path):
            left.append(word)
            continue
        if not joined:
            if not words or words[0].startswith("--"):
                raise Refused(f"{option} needs a type: {', '.join(_types(experiment, path))}.")
            name = words.pop(0)
        experiment = _changed(experiment, path, option, name)
    return experiment, left


def types_of(base: type) -> dict[str, type]:
    """The classes that a field of type `base` can hold, by name: jaxbig's and the user's own."""
    shipped_classes()  # imports them

    def below(kind: type) -> list[type]:
        return [kind, *(each for child in kind.__subclasses__() for each in below(child))]

    found = [each for each in below(base) if dataclasses.is_dataclass(each)]
    return {each.__name__: each for each in found if not inspect.isabstract(each)}


def _is_part(value: Any, path: Sequence[str]) -> bool:
    """Whether a path leads to a dataclass; a model is none, as its fields are too different."""
    for name in path:
        if not _is_config(value) or name not in settings(value):
            return False
        value = getattr(value, name)
    return bool(path) and _is_config(value) and not isinstance(value, nn.Module)


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _types(experiment: Experiment, path: Sequence[str]) -> dict[str, type]:
    owner: Any = experiment
    for name in path[:-1]:
        owner = getattr(owner, name)
    base = annotations_of(type(owner))[path[-1]]
    return types_of(base) if isinstance(base, type) else {}


def _changed(value: Any, path: Sequence[str], option: str, name: str) -> Any:
    """A copy of a config in which the part at `path` has the type called `name`."""
    first, *rest = path
    part = getattr(value, first)
    if rest:
        return dataclasses.replace(value, **{first: _changed(part, rest, option, name)})
    types = _types(value, path)
    spelled = {each.lower(): each for each in types}
    kind = types.get(name) or types.get(spelled.get(name.lower(), ""))
    if kind is None:
        near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
        nearest = f"the nearest is {spelled[near[0]]}; " if near else ""
        raise Refused(f"{option} {name!r}: {nearest}it must be one of {', '.join(types)}.")
    if kind is type(part):
        return value
    kept = {field: getattr(part, field) for field in settings(part) if field in settings(kind)}
    needed = {
        field.name: tyro.MISSING  # an option must give it
        for field in dataclasses.fields(kind)
        if field.name in settings(kind)
        and field.name not in kept
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    }
    return dataclasses.replace(value, **{first: kind(**kept, **needed)})
