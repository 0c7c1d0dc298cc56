"""Command-line options: parsed by tyro; its errors become one sentence. Needs no JAX."""

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxbig.config.experiment_files import run_folder
from jaxbig.errors import Refused

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonOption:
    """The option of every command."""

    json: Flag = False
    """Print one JSON object on standard output, and nothing else there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderOption:
    """The option of every command on a run."""

    workdir: Path | None = None
    """The folder of the run; runs/NAME if it is not given, or the folder that is named."""


def run_name(experiment: str) -> str:
    """NAME in runs/NAME: an experiment's file without `.py`, the last part of its module, or the
    name of its run's folder."""
    if folder := run_folder(experiment):
        return folder.resolve().name
    file = Path(experiment)
    return file.stem if file.suffix == ".py" else file.name.split(".")[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `jaxbig train` alone."""

    fork: Flag = False
    """If the folder holds another run: start again there from that run's weights, and keep that run
    aside."""

    adopt: Flag = False
    """If the folder's run.json is lost or empty: resume from its checkpoints, which must be those
    of this same command."""

    smoke: Flag = False
    """Smoke test: two steps and an evaluation of a shrunken copy, on synthetic records if the data
    is missing. It has a folder of its own, which is emptied first."""


SYNONYMS = {
    "batch-size": "data.batch",
    "learning-rate": "optimizer.learning-rate.peak",
    "lr": "optimizer.learning-rate.peak",
    "epochs": "steps",
    "num-epochs": "steps",
    "max-steps": "steps",
    "output-dir": "workdir",
    "resume": "workdir",
}
"""Other programs' names of options, and ours."""
MIN_SIMILARITY = 0.75
"""The least similarity of two names for one to be suggested for the other, 0 to 1."""


def parse(
    command: Any, options: Sequence[str], words: str, default: Any = None, program: str = "jaxbig"
) -> Any:
    """A command with its options, parsed by tyro.

    Args:
      command: the dataclass of the options.
      options: the arguments.
      words: the command's name, as "train digits_convnet".
      default: an instance with the defaults.
      program: the program's name in messages.

    Raises:
      Refused: for a wrong option, in one sentence, where tyro would draw a box.
    """
    errors = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(command, prog=f"{program} {words}", args=options, **extra)
        refuse_remote(parsed)
        return parsed
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
    # a box, whose title is in its frame or above a line
    text = re.sub(r"\x1b\[[0-9;]*m|[│╰╯]", "", errors.getvalue())
    parts = re.split(r"[─-]{3,}", re.sub(r"╭.*╮", "\n", text))
    sections = [" ".join(part.split()) for part in parts if part.split()]
    if "╭" not in text:
        sections = sections[1:]
    said, *more = sections
    near = re.findall(r"--[\w.-]+", more[0]) if more and more[0].startswith("Perhaps") else []
    unknown = re.findall(r"--[\w.-]+", said) if said.startswith("Unrecognized") else []
    if unknown:
        near = nearest_options(unknown[0], near, default)
    nearest = f"; the nearest are {', '.join(near[:3])}" if near else ""
    raise Refused(f"{said}{nearest}; `{program} {words} --help` names all options.")


def nearest_options(unknown: str, near: Sequence[str], default: Any) -> list[str]:
    """Options that the user may have meant, likeliest first: by a synonym, or by similar names.

    near: tyro's suggestions, which include the command's own options.
    """
    known = [] if default is None else option_names(default)
    meant = f"--{SYNONYMS.get(unknown[2:].replace('_', '-'), '')}"
    if meant in known:
        return [meant]

    def similarity(name: str) -> float:
        given = unknown[2:].replace("_", "-")
        option = name[2:]
        pairs = ((given, option), (given.split(".")[-1], option.split(".")[-1]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    found = {name: similarity(name) for name in dict.fromkeys([*near, *known])}
    similar = [name for name in found if found[name] >= MIN_SIMILARITY]
    return sorted(similar, key=lambda name: -found[name])


def option_names(value: Any, path: str = "") -> list[str]:
    """The options of a command and of its experiment, as `--model.depth`."""
    items: list[tuple[str, Any]] = []
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        if "parent" in names:  # a Flax module
            names = [name for name in names if name not in ("parent", "name")]
        items = [(name, getattr(value, name)) for name in names]
    elif isinstance(value, list | tuple):
        items = [(str(place), item) for place, item in enumerate(value)]
    elif isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    if not items:
        return [f"--{path.replace('_', '-')}"]
    inner = [(name if name != "experiment" or path else "", item) for name, item in items]
    return [
        option
        for name, item in inner
        for option in option_names(item, ".".join(part for part in (path, name) if part))
    ]


def refuse_remote(parsed: Any) -> None:
    """Raises `Refused` for a URL where a path is expected: `Path` would create a folder of that
    name."""
    for field in dataclasses.fields(parsed) if dataclasses.is_dataclass(parsed) else ():
        value = getattr(parsed, field.name)
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
                scheme, rest = str(path).split(":/", 1)
                raise Refused(
                    f"--{field.name} {scheme}://{rest.lstrip('/')}: runs are kept in folders of "
                    f"a file system: mount the bucket (README, Launch) and give the path of its "
                    f"mount."
                )


def lasting(options: Sequence[str]) -> list[str]:
    """The options that another command on the same run needs too."""
    return without(
        options, ("--coordinator", "--processes", "--process"), flags=("--fork", "--adopt")
    )


def without(options: Sequence[str], valued: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """The options without those named, and without their values.

    Args:
      options: as they were given.
      valued: names of options that take a value.
      flags: names of options that take none.
    """
    kept = []
    skip = False
    for word in options:
        if not skip and word not in flags and word.split("=")[0] not in valued:
            kept.append(word)
        skip = not skip and word in valued
    return kept
