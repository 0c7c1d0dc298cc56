"""JSON files that are written atomically and read with clear errors."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

from jaxbig.errors import Failed, Refused
from jaxbig.system.disk import write_file


def _copy_to_broken(file: Path, content: bytes) -> Path:
    """Copies a file's old content into `broken/`, where corrupt checkpoints go too."""
    folder = file.parent / "broken"
    folder.mkdir(exist_ok=True)
    names = (folder / f"{file.stem}-{number}{file.suffix}" for number in itertools.count())
    copy = next(name for name in names if not name.exists())
    write_atomically(copy, content)
    return copy


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes the complete file or leaves the old one, even at a power loss.

    Raises:
      Failed: the file cannot be written.
    """
    try:
        write_file(file, content)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror or error}.") from error


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
