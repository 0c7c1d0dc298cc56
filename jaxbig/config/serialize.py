"""Turns an experiment into plain JSON values, for run.json and options; writes nothing."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from jaxbig.constraints import settings
from jaxbig.errors import Refused


def to_json(value: Any) -> Any:
    """An experiment or any of its fields as JSON; a dataclass is its type's name and its fields.

    Raises:
      Refused: for a value that JSON cannot represent.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: to_json(getattr(value, name)) for name in settings(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, type) and issubclass(value, nnx.Module):  # of a `ToLinen`
        return value.__name__
    raise Refused(
        f"an experiment's field holds {value!r}, a {type(value).__name__}: "
        f"use numbers, text or dataclasses."
    )


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Nested JSON as pairs of a dotted path, as in an option's name, and a value."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [
            line
            for name, item in items
            for line in flat(item, f"{path}.{name}" if path else str(name))
        ]
    return [(path, value)]
