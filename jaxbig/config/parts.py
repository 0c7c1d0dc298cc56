"""Lists the classes that an experiment can be made of, and the fields of each."""

import dataclasses
import difflib
import importlib
import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jaxbig.config.callback import Callback
from jaxbig.config.evaluator import Evaluator, Every
from jaxbig.config.experiment import Experiment
from jaxbig.config.help_texts import class_summary, field_help
from jaxbig.constraints import Range, annotations_of, settings
from jaxbig.errors import Refused

PACKAGES = ("models", "objectives", "data", "optim", "evaluators")
"""The packages that name their public classes."""
ROOMS = {
    "models": ("Model",),
    "layers": ("Module", "RotaryScaling"),
    "objectives": ("Objective",),
    "metrics": ("Metric",),
    "data": ("Data",),
    "records": ("Records",),
    "tokenizers": ("Tokenizer",),
    "transforms": ("Augmentation", "Mixing", "LogMel", "SpecAugment"),
    "optimizers": ("Optimizer",),
    "schedules": ("Schedule",),
    "evaluators": ("Evaluator",),
    "callbacks": ("Callback",),
    "settings": ("Mesh", "Every", "Precision", "Guard", "InitializeFrom", "LoRA", "Weights"),
}
"""The names of the base classes of each kind of part; a class is in the first room that fits."""


def parts() -> dict[str, dict[str, Any]]:
    """The classes of each room, by name."""
    found: dict[str, dict[str, Any]] = {room: {} for room in ROOMS}
    for each in public_classes():
        room = next((room for room, bases in ROOMS.items() if _is_part(each, bases)), None)
        if room:
            found[room][each.__name__] = each
    return found


def public_classes() -> list[Any]:
    """The classes with a name in `jaxbig.models`, `jaxbig.data`, ..., and those of settings."""
    defaults = (field.default for field in dataclasses.fields(Experiment))
    found: list[Any] = [Callback, Evaluator, Every, *(type(each) for each in defaults)]
    for package in PACKAGES:
        module = importlib.import_module(f"jaxbig.{package}")
        found += [getattr(module, name) for name in module.__all__]
    return [each for each in found if inspect.isclass(each)]


def list_parts() -> list[dict[str, str]]:
    """All parts, each with its room and summary."""
    return [
        {"room": room, "class": name, "summary": class_summary(each)}
        for room, classes in parts().items()
        for name, each in classes.items()
    ]


def describe_part(name: str) -> dict[str, Any]:
    """A part, or a base class of parts: its module, docstring, fields, and methods to write.

    Raises:
      Refused: there is none of that name; the message has the nearest one.
    """
    known = {each.__name__: each for each in public_classes()}
    spelled = {each.lower(): each for each in known}
    found = spelled.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)
        nearest = f"the nearest are {', '.join(spelled[each] for each in near)}; " if near else ""
        raise Refused(f"there is no part {name!r}: {nearest}`jaxbig parts` lists all.")
    part = known[found]
    annotations = annotations_of(part)
    fields = {field.name: field for field in getattr(part, "__dataclass_fields__", {}).values()}
    return {
        "class": found,
        "module": part.__module__,
        "text": inspect.cleandoc(part.__doc__ or ""),
        "fields": [
            {
                "field": each,
                "type": format_type(annotations[each]),
                "default": _default(fields[each]),
                "help": field_help(part, each),
            }
            for each in (settings(part) if fields else [])
        ],
        "methods": [
            describe_method(part, each) for each in sorted(getattr(part, "__abstractmethods__", ()))
        ],
    }


def describe_method(part: type, name: str) -> dict[str, str]:
    """A method of a class with its parameters, or a property, and its docstring in one line."""
    method = getattr(part, name)
    parameters = f"({', '.join(inspect.signature(method).parameters)})" if callable(method) else ""
    return {"method": f"{name}{parameters}", "help": " ".join((method.__doc__ or "").split())}


def format_type(annotation: Any) -> str:
    """A field's type and the values that it allows, as "int, 1 or more" or "max | mean"."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        ranges = [str(each) for each in arguments[1:] if isinstance(each, Range)]
        return ", ".join([format_type(arguments[0]), *ranges])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(format_type, arguments))
    if arguments:
        inner = [format_type(each) for each in arguments if each is not Ellipsis]
        return f"{getattr(origin, '__name__', origin)}[{', '.join(inner)}]"
    if annotation is type(None):
        return "None"
    return getattr(annotation, "__name__", str(annotation))


def _is_part(each: Any, bases: tuple[str, ...]) -> bool:
    """Whether it is a class of a room that can be used as it is, and not only derived from."""
    if not inspect.isclass(each) or inspect.isabstract(each):
        return False
    above = [base.__name__ for base in each.__mro__]
    return not set(bases).isdisjoint(above) and each.__module__ != "jaxbig.models.base"


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field as text or number; "required" if it has none."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}()"
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, int | float | str) else repr(value)
