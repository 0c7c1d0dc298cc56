"""What a run leaves to be read: metrics.jsonl, TensorBoard's event files, run.json and summary.json."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

from jaxbig.errors import Failed, Refused
from jaxbig.system.disk import replace


def _copy_to_broken(file: Path, content: bytes) -> Path:
    """Where broken checkpoints go, too."""
    folder = file.parent / "broken"
    folder.mkdir(exist_ok=True)
    names = (folder / f"{file.stem}-{number}{file.suffix}" for number in itertools.count())
    copy = next(name for name in names if not name.exists())
    write_atomically(copy, content)
    return copy


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes the whole file or leaves the old one, through a power loss too."""
    temporary = file.with_name(file.name + ".partial")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        replace(temporary, file)
    except OSError as error:
        raise Failed(f"cannot write {file}: {error.strerror or error}.") from error


def to_json_text(value: Any, indent: int | None = None) -> str:
    """JSON as its standard has it: a number that is not finite becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), indent=indent)


def write_json(file: Path, value: Any) -> None:
    """Writes JSON whole, or leaves the old file."""
    write_atomically(file, to_json_text(value, indent=1) + "\n")


def read_json(file: Path, kind: type = dict) -> Any:
    """The JSON object, or list, in a file, or None if there is no such file; `Refused` if it is not one."""
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = (
            "it is empty, as a power loss leaves it"
            if file.is_file() and not file.stat().st_size
            else error
        )
        raise Refused(
            f"{file} cannot be read: {why}; bring back a copy of it, or give another folder."
        ) from None
    if not isinstance(value, kind):
        raise Refused(
            f"{file} was not written by jaxbig: it holds no JSON {kind.__name__}; give another folder."
        )
    return value
