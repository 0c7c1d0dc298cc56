"""The options that commands share, their parsing by tyro, and edits of command lines; no JAX."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro import _errors as tyro_errors  # errors before they are drawn; no public name

from jaxbig.config import spellings
from jaxbig.config.experiment_files import run_folder
from jaxbig.config.help_texts import HELP
from jaxbig.errors import Refused

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The options of every command."""

    json: Flag = False
    """Print one JSON object on standard output, and nothing else there."""
    quiet: Flag = False
    """Print results, warnings and errors only."""
    verbose: Flag = False
    """Print every logged step, and the logs of jaxbig and jax with their times."""

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise Refused("--quiet and --verbose contradict each other: give one of them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigOption:
    """The option of every command on an experiment."""

    config: Path | None = None
    """A JSON file of {option: value}, as {"steps": 100, "model.depth": 3}, or the run.json of a
    run, whose experiment is taken. Options that are given here win."""


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

    resume_from: str = ""
    """Go back to a checkpoint of the run, last, best or a step, and continue from there. What came
    after it is kept in the run's folder, in rewound_N."""

    epochs: float = 0.0
    """Train for this many passes over the training examples; 0: for --steps."""

    dry_run: Flag = False
    """Check all that can be checked before the first compilation, say how the run would start, and
    end. Nothing is written but caches of the data."""

    profile: str = ""
    """Trace the steps START:STOP, without STOP, as 100:105, into profile/ of the run's folder. Open
    it in XProf or Perfetto, or read it by jaxbig profile."""

    dump: Flag = False
    """Write the jaxpr and the optimized HLO of the train step into dump/ of the run's folder."""

    smoke: Flag = False
    """Smoke test: two steps and an evaluation of a shrunken copy, on synthetic records if the data
    is missing. It has a folder of its own, which is emptied first."""


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
    extra = {} if default is None else {"default": default}

    def refuse(error: tyro_errors.ParseErrorEvent) -> None:
        said = describe_error(error, words, option_names(command, default))
        if said:
            raise Refused(f"{said}; `{program} {words} --help` lists all options.")

    with tyro_errors.on_parse_error(refuse):
        parsed = tyro.cli(command, prog=f"{program} {words}", args=options, registry=HELP, **extra)
    refuse_remote(parsed)
    return parsed


def describe_error(error: Any, words: str, known: Sequence[str]) -> str:
    """An error of tyro in words; "" for one that tyro itself has to print.

    Args:
      error: the event that tyro's hook receives.
      words: the command's name.
      known: all its options.
    """
    match error:
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            return describe_unknown(tokens, known)
        case tyro_errors.MissingArgs(unrecognized_tokens=[_, *_] as tokens):
            return describe_unknown(tokens, known)
        case tyro_errors.MissingArgs(missing_arguments=[first, *_]):
            return f"{words} needs {_option(first.arg)}: {_help(first.arg)}"
        case tyro_errors.BadValue(argument=argument) if argument.is_positional():
            return f"{words} needs {_option(argument)}: {_help(argument)}"
        case tyro_errors.BadValue(argument=argument):
            return f"{_option(argument)} needs a value, {argument.lowered.metavar}"
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{_option(argument)} {value!r}: it must be one of {', '.join(choices)}"
        case tyro_errors.InstantiationFailure(argument=None, message=message):
            return " ".join(str(message).split())
        case tyro_errors.InstantiationFailure(argument=argument, message=message):
            return f"{_option(argument)}: {' '.join(str(message).split())}"
    return ""


def _option(argument: Any) -> str:
    """The name of an option, or of what stands without one."""
    if argument.is_positional():
        return argument.field.intern_name.upper()
    return argument.lowered.name_or_flags[-1]


def _help(argument: Any) -> str:
    text: Any = argument.field.helptext
    return str((text() if callable(text) else text) or "").rstrip(".")


def describe_unknown(tokens: Sequence[str], known: Sequence[str]) -> str:
    """The message for words of a command line that mean nothing there.

    Args:
      tokens: the unknown options, each with what follows it.
      known: the options that there are.
    """
    unknown = [token.split("=")[0] for token in tokens if token.startswith("-")]
    if not unknown:
        return f"{tokens[0]!r} is not expected here: an option is --name value, a flag is --name"
    option, *others = unknown
    said = f"there is no option {option}"
    if others:
        said = f"there are no options {', '.join(unknown)}"
    note = spellings.note(option)
    if note:
        return f"{said}: {note}"
    if option in known:  # an empty list of parts
        return f"{option} is no option: give it in an experiment's file"
    inner = [name for name in known if name.startswith(f"{option}.")]
    if inner:
        return f"{said}: it has options of its own, as {inner[0]}"
    near = nearest_options(option, known)[:3]
    if near:
        said += f"; the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"
    return said


def nearest_options(unknown: str, known: Sequence[str]) -> list[str]:
    """The options that may be meant, likeliest first: by another spelling, or by similar names."""
    meant = spellings.ours(unknown, known)
    if meant:
        return [meant]
    given = unknown.lstrip("-").replace("_", "-")

    def similarity(name: str) -> float:
        option = name[2:]
        pairs = ((given, option), (given.split(".")[-1], option.split(".")[-1]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    found = {name: similarity(name) for name in dict.fromkeys(known)}
    similar = [name for name in found if found[name] >= MIN_SIMILARITY]
    return sorted(similar, key=lambda name: -found[name])


def option_names(command: type, default: Any = None) -> list[str]:
    """The options of a command and of its experiment, as `--model.depth`."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        if tyro.conf.Suppress in marks or tyro.conf.Positional in marks:
            continue
        renamed = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        path = renamed[0] if renamed else name
        names += paths(getattr(default, name, None), path)
    return [f"--{name.replace('_', '-')}" for name in names if name]


def paths(value: Any, path: str = "") -> list[str]:
    """The dotted paths of a config's fields, and of the fields of what they hold."""
    items: list[tuple[Any, Any]] = []
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        if "parent" in fields:  # a Flax module
            fields = [name for name in fields if name not in ("parent", "name")]
        items = [(name, getattr(value, name)) for name in fields]
    elif isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    inner = [each for name, item in items for each in paths(item, f"{path}.{name}".strip("."))]
    return inner or [path]


def refuse_remote(parsed: Any) -> None:
    """Raises `Refused` for a URL where a path is expected: `Path` would create a folder of that
    name."""
    for field in dataclasses.fields(parsed) if dataclasses.is_dataclass(parsed) else ():
        value = getattr(parsed, field.name)
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path):
                refuse_url(f"--{field.name}", path)


def refuse_url(name: str, path: Path) -> None:
    """Raises `Refused` if a path was a URL, as `gs://bucket/runs`; `name` is that of its option."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        scheme, rest = str(path).split(":/", 1)
        raise Refused(
            f"{name} {scheme}://{rest.lstrip('/')}: runs are kept in folders of a file system: "
            f"mount the bucket (docs/launch.md) and give the path of its mount."
        )


def lasting(options: Sequence[str]) -> list[str]:
    """The options that another command on the same run needs too."""
    once = ("--coordinator", "--processes", "--process", "--resume-from", "--profile")
    return without(options, once, flags=("--fork", "--adopt", "--dry-run", "--dump"))


def option_words(path: str, value: Any) -> list[str]:
    """An option of an experiment as words of a command line.

    Args:
      path: its dotted path, as `model.depth`.
      value: a number, a text, a bool, None, or a list of them.
    """
    name = path.replace("_", "-")
    if isinstance(value, bool):
        *above, last = name.split(".")
        return ["--" + ".".join([*above, last if value else f"no-{last}"])]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def names(options: Sequence[str]) -> set[str]:
    """The names of the options that are given, as `--steps`."""
    return {word.split("=")[0].replace("_", "-") for word in options if word.startswith("--")}


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
