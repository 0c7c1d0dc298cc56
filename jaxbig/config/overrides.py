"""The options of a command line: read by tyro, and refused in a sentence."""

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import flat, to_json
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overridden:
    """What `jaxbig train EXPERIMENT` takes wherever it runs."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    workdir: Path | None = None
    fork: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    adopt: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


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
"""What other programs call an option -> its name here."""
ALIKE = 0.75
"""How much of two names must agree for one to be proposed for the other, 0 to 1."""


def resolve(name: str, options: Sequence[str]) -> Experiment:
    """The experiment as `jaxbig train NAME [options]` would run it; `Refused` as that would refuse it."""
    return parse(Overridden, options, f"train {name}", Overridden(experiment=load(name))).experiment


def parse(
    verb: Any, options: Sequence[str], words: str, default: Any = None, program: str = "jaxbig"
) -> Any:
    """The verb with its options set, by tyro; what tyro refuses in a box is refused in a sentence."""
    errors, extra = io.StringIO(), {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(verb, prog=f"{program} {words}", args=options, **extra)
        refuse_remote(parsed)
        return parsed
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
    text = re.sub(
        r"\x1b\[[0-9;]*m|[│╰╯]", "", errors.getvalue()
    )  # a box whose title is in its frame, or above a line
    parts = re.split(r"[─-]{3,}", re.sub(r"╭.*╮", "\n", text))
    said, *more = [" ".join(part.split()) for part in parts if part.split()]["╭" not in text :]
    near = re.findall(r"--[\w.-]+", more[0]) if more and more[0].startswith("Perhaps") else []
    unknown = re.findall(r"--[\w.-]+", said) if said.startswith("Unrecognized") else []
    if unknown:
        near = nearest_options(unknown[0], near, default)
    nearest = f"; the nearest are {', '.join(near[:3])}" if near else ""
    raise Refused(f"{said}{nearest}; `{program} {words} --help` names all options.")


def nearest_options(unknown: str, near: Sequence[str], default: Any) -> list[str]:
    """Options that may be meant, likeliest first: a synonym's, or those whose last part is much alike.

    near: what tyro proposes, among which the verb's own options are."""
    paths = [path for path, _ in flat(to_json(default.experiment))] if default is not None else []
    paths += [field.name for field in dataclasses.fields(default)] if default is not None else []
    known = [f"--{path.replace('_', '-')}" for path in paths if not path.endswith("type")]
    meant = f"--{SYNONYMS.get(unknown[2:].replace('_', '-'), '')}"
    if meant in known:
        return [meant]

    def alike(name: str) -> float:
        here, there = unknown[2:].replace("_", "-"), name[2:]
        pairs = (here, there), (here.split(".")[-1], there.split(".")[-1])
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    found = {name: alike(name) for name in dict.fromkeys([*near, *known])}
    return sorted((name for name in found if found[name] >= ALIKE), key=lambda name: -found[name])


def refuse_remote(parsed: Any) -> None:
    """`Refused` where an option that takes a path of this machine got an address: `Path` would make a folder of it."""
    for field in dataclasses.fields(parsed) if dataclasses.is_dataclass(parsed) else ():
        value = getattr(parsed, field.name)
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
                scheme, rest = str(path).split(":/", 1)
                raise Refused(
                    f"--{field.name} {scheme}://{rest.lstrip('/')}: runs are kept in folders of a file system: mount "
                    f"the bucket (README, Launch) and give the path of its mount."
                )


def lasting(options: Sequence[str]) -> list[str]:
    """Those that a next command on the same run needs too."""
    return without(
        options, ("--coordinator", "--processes", "--process"), flags=("--fork", "--adopt")
    )


def without(options: Sequence[str], valued: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Options as they were written, without those of these names and the values behind them."""
    kept, skip = [], False
    for word in options:
        if not skip and word not in flags and word.split("=")[0] not in valued:
            kept.append(word)
        skip = not skip and word in valued
    return kept
