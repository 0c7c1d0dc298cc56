"""The help of a field and the summary of a class, read from docstrings. Needs no JAX."""

import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

HELP = ConstructorRegistry()
"""For `tyro.cli`: gives each option the help of its field, and each group the class it is of."""
MOST_WORDS = 30
"""Of a default that the help shows in full."""


def field_help(owner: type, name: str) -> str:
    """The attribute docstring of a field, its class's own or an inherited one, as one line."""
    found = (_attributes(each).get(name) for each in owner.__mro__)
    return next((text for text in found if text), "")


def class_summary(owner: type) -> str:
    """The first paragraph of a class's docstring, as one line."""
    return " ".join((inspect.getdoc(owner) or "").split("\n\n")[0].split())


@functools.cache
def _attributes(owner: type) -> dict[str, str]:
    if owner.__module__ == "builtins":
        return {}
    documented = docstring_parser.parse_from_object(owner).params
    return {each.arg_name: " ".join((each.description or "").split()) for each in documented}


class _Rule:
    """A rule that gives tyro's own answer, with the help of each field on one line."""

    def __init__(self) -> None:
        self.asks = False

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self.asks:
            return None
        self.asks = True
        try:
            found = ConstructorRegistry.get_struct_spec(info)
        finally:
            self.asks = False
        if not isinstance(found, StructConstructorSpec):
            return None
        fields = tuple(
            dataclasses.replace(
                field,
                helptext=_help(info.type, field.name, field.default),
                type=_shown_in_a_line(field.type, field.default),
            )
            for field in found.fields
        )
        return dataclasses.replace(found, fields=fields)


HELP.struct_rule(_Rule())


def _help(owner: Any, name: str, default: Any) -> str:
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        text = f"{type(default).__name__}: {class_summary(type(default))}"
        return f"{text} {field_help(owner, name)}" if isinstance(owner, type) else text
    return field_help(owner, name) if isinstance(owner, type) else ""


def _shown_in_a_line(annotation: Any, default: Any) -> Any:
    """The type of a field, whose help quotes a default that has a line break, and of a long tuple
    the first values alone."""
    shown = ""
    if isinstance(default, str) and not default.isprintable():
        shown = repr(default)
    elif isinstance(default, tuple) and len(words := list(_words(default))) > MOST_WORDS:
        shown = f"{' '.join(words[: MOST_WORDS // 2])} ..., {len(words)} words in all"
    if not shown:
        return annotation
    return Annotated[annotation, tyro.conf.arg(help_behavior_hint=f"(default: {shown})")]


def _words(default: Any) -> Iterator[str]:
    """The words of a default on the command line; none of an object that is no plain value."""
    if isinstance(default, tuple):
        for each in default:
            yield from _words(each)
    elif isinstance(default, str | int | float):
        yield str(default)
