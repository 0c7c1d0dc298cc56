"""Options from a JSON file, the FILE of `--config`: read here, and put before those given."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxbig.config.deserialize import from_json, from_run
from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.config.options import names, option_words
from jaxbig.errors import Refused

LENGTHS = {"--steps", "--epochs"}
"""Options of which one replaces the other."""


def load_with_config(name: str, options: Sequence[str]) -> tuple[Experiment, list[str]]:
    """An experiment and the options on top of it, those in the file of `--config` first.

    The file is a `run.json`, whose experiment is then returned, or holds {option: value}, where
    options may be nested. An option that is given is not taken from the file.

    Args:
      name: of the experiment.
      options: as they were given.

    Raises:
      Refused: the file is not there, or cannot be read.
    """
    experiment = load(name)
    file = config_file(options)
    if not file:
        return experiment, list(options)
    content = read_object(file)
    if isinstance(content.get("experiment"), dict):
        return from_run(content), list(options)
    if content.get("type") == "Experiment":
        return from_json(content), list(options)
    given = names(options)
    given |= LENGTHS if given & LENGTHS else set()
    own = {field.name for field in dataclasses.fields(experiment)}
    words = []
    for path, value in settings(content):
        added = option_words(path, value)
        if isinstance(value, bool) and path.replace("-", "_").split(".")[0] not in own:
            added = [f"--{path}"] * value  # a flag of the command, which has no --no-...
        if not names(added) & given:
            words += added
    return experiment, [*words, *options]


@contextlib.contextmanager
def naming_config(options: Sequence[str], words: Sequence[str]) -> Iterator[None]:
    """Names the file of `--config` in an error about an option that is in that file only.

    Args:
      options: as they were given.
      words: with those of the file.
    """
    try:
        yield
    except Refused as error:
        said = str(error).split(";")[0]  # before what is suggested
        added = names(words) - names(options)
        if not any(re.search(rf"{name}(?![\w.-])", said) for name in added):
            raise
        raise Refused(f"--config {config_file(options)}: {error}") from None


def read_object(file: str) -> dict[str, Any]:
    """The JSON object in a file; raises `Refused` if there is none."""
    try:
        content = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise Refused(f"--config {file}: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"--config {file}: it is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise Refused(f'--config {file}: it must be {{option: value}}, as {{"steps": 100}}.')
    return content


def config_file(options: Sequence[str]) -> str:
    """The file that `--config` names; "" if there is none."""
    words = [part for word in options for part in word.split("=", 1)]
    return words[words.index("--config") + 1] if "--config" in words[:-1] else ""


def settings(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested JSON as pairs of an option's path and its value; a list of plain values is a value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        items = [(name, item) for name, item in content.items() if name != "type" or not path]
        if path and "type" in content:
            yield path, content["type"]
    elif isinstance(content, list) and any(isinstance(item, dict | list) for item in content):
        items = list(enumerate(content))
    if not items:
        if not re.fullmatch(r"[A-Za-z][\w.-]*", path):
            raise Refused(f"--config: {path!r} is no name of an option.")
        yield path, content
    for name, item in items:
        yield from settings(item, f"{path}.{name}".strip("."))
