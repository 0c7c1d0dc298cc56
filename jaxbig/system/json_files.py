"""JSON files that are written atomically and read with clear errors."""

import functools
import json
import logging
import math
from pathlib import Path
from typing import Any

from jaxbig.errors import Refused
from jaxbig.system.disk import write_atomically

log = logging.getLogger("jaxbig")


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning, once in a process: files may be read again and again."""
    log.warning("%s", text)


def to_json_text(value: Any, indent: int | None = None, *, ascii_only: bool = True) -> str:
    """Standard JSON: a number that is not finite becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), indent=indent, ensure_ascii=ascii_only)


def write_json(file: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(file, to_json_text(value, indent=1) + "\n")


def read_json(file: Path, kind: type = dict) -> Any:
    """Reads a JSON file; None if it does not exist.

    Args:
      file: its path.
      kind: the type of its value, dict or list.

    Raises:
      Refused: the file cannot be read, or contains another type.
    """
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        empty = file.is_file() and not file.stat().st_size
        why = "it is empty, as after a power loss" if empty else error
        raise Refused(
            f"{file} cannot be read: {why}; restore a copy of it, or give another folder."
        ) from None
    if not isinstance(value, kind):
        raise Refused(
            f"{file} was not written by jaxbig: it contains no JSON {kind.__name__}; give another "
            f"folder."
        )
    return value
