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

from jaxbig.errors import Refused
from jaxbig.experiment import Experiment, flat, load, to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overridden:
    """What `jaxbig train EXPERIMENT` takes wherever it runs."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    workdir: Path | None = None
    fork: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def resolve(name: str, options: Sequence[str]) -> Experiment:
    """The experiment as `jaxbig train NAME [options]` would run it; `Refused` as that would refuse it."""
    return parse(Overridden, options, f"train {name}", Overridden(experiment=load(name))).experiment


def parse(verb: Any, options: Sequence[str], words: str, default: Any = None, program: str = "jaxbig") -> Any:
    """The verb with its options set, by tyro; what tyro refuses in a box is refused in a sentence."""
    errors, extra = io.StringIO(), {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(verb, prog=f"{program} {words}", args=options, **extra)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
    text = re.sub(r"\x1b\[[0-9;]*m|[│╰╯]", "", errors.getvalue())  # a box whose title is in its frame, or above a line
    parts = re.split(r"[─-]{3,}", re.sub(r"╭.*╮", "\n", text))
    said, *more = [" ".join(part.split()) for part in parts if part.split()]["╭" not in text :]
    near = re.findall(r"--[\w.-]+", more[0]) if more and more[0].startswith("Perhaps") else []
    unknown = re.findall(r"--[\w.-]+", said) if said.startswith("Unrecognized") else []
    if default is not None and unknown and not near:  # tyro saw nothing like it
        known = [f"--{path.replace('_', '-')}" for path, _ in flat(to_json(default.experiment))]
        near = difflib.get_close_matches(unknown[0], [name for name in known if not name.endswith("type")], 3, 0.3)
    nearest = f"; the nearest are {', '.join(list(dict.fromkeys(near))[:3])}" if near else ""
    raise Refused(f"{said}{nearest}; `{program} {words} --help` names all options.")


def lasting(options: Sequence[str]) -> list[str]:
    """Those that a next command on the same run needs too."""
    once = ("--fork", "--coordinator", "--processes", "--process")
    options = [part for option in options for part in (option.split("=", 1) if option.startswith(once) else [option])]
    values = [place + 1 for place, option in enumerate(options) if option in once[1:]]
    return [option for place, option in enumerate(options) if option not in once and place not in values]
