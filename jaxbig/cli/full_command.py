"""The complete command that does the same: what `--print-command` prints."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxbig.config.config_file import load_with_config
from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.config.options import option_words, paths
from jaxbig.config.overrides import resolve
from jaxbig.config.serialize import to_json
from jaxbig.errors import Refused

LEFT_OUT = ("--config", "--json", "--print-command")


def full_command(word: str, name: str, options: Sequence[str], experiment: Experiment) -> list[str]:
    """A command line without `--config` that has the same experiment and other options.

    Each option of the experiment that differs from the file of that name is in it, once.

    Args:
      word: the command, as "data inspect".
      name: of the experiment.
      options: as they were given.
      experiment: what they give.

    Raises:
      Refused: options cannot give this experiment, as where a `--config` changes its model's class.
    """
    base = load(name)
    before = dict(leaves(to_json(base)))
    changed = [
        (path, value)
        for path, value in leaves(to_json(experiment))
        if path not in before or before[path] != value
    ]
    words = [each for path, value in changed for each in option_words(path, value)]
    try:
        same = resolve(name, words) == experiment
    except Refused:
        same = False
    if not same:
        raise Refused(
            f"--print-command: no options turn {name} into this experiment: keep --config, or name "
            f"another experiment."
        )
    own = {f"--{path.replace('_', '-')}" for each in (base, experiment) for path in paths(each)}
    _, full = load_with_config(name, options)
    return ["jaxbig", *word.split(), name, *words, *others(full, own)]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The options of an experiment's JSON, with their values; a part's option is its type."""
    if isinstance(value, dict) and "type" in value:
        if path:
            yield path, value["type"]
        for name, item in value.items():
            if name != "type":
                yield from leaves(item, f"{path}.{name}".strip("."))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for place, item in enumerate(value):
            yield from leaves(item, f"{path}.{place}")
    else:
        yield path, value


def others(words: Sequence[str], own: set[str]) -> Iterator[str]:
    """The options that are not the experiment's, with their values.

    Args:
      words: of a command line.
      own: the experiment's options.
    """
    parts = {
        option.rsplit(".", number)[0] for option in own for number in range(option.count(".") + 1)
    }
    kept = False
    for word in words:
        if word.startswith("--"):
            option = word.split("=")[0].replace("_", "-")
            plain = ".".join(part.removeprefix("no-") for part in option[2:].split("."))
            kept = f"--{plain}" not in parts and option not in LEFT_OUT
        if kept:
            yield word
