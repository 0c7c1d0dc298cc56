"""What all launchers share: how one begins, the command that it starts, and what it refuses to carry anywhere.

What a user writes reaches a job as data: as an argument in a list, or quoted for the shell that reads it.
"""

import abc
import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from jaxbig.config.overrides import parse, resolve
from jaxbig.errors import Failed, Refused
from jaxbig.system.standard_streams import install_pipe_safe_streams

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
NAME = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
"""Of a run: it becomes the name of a job, a pod, a machine and a folder."""
WORD = r"[A-Za-z0-9]([A-Za-z0-9_.,:@/+-]*[A-Za-z0-9])?"
"""Of what a cluster has named: a partition, an image, a zone."""
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
CACHE = ".jaxbig-cache"
"""Folder beside the runs for what is built from the data (indexes, tokenizers, packed rows): every process of a run
shares it, and it outlives them. No run has this name: `NAME` begins with a letter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launcher(abc.ABC):
    """Prints what it would submit; submits it with --submit."""

    experiment: tyro.conf.Positional[str]
    """As `jaxbig train` takes it: a name, a .py file or a dotted module."""
    name: str = ""
    """Of the run, whose folder is runs/NAME then: small letters, digits and dashes, 40 at most."""
    submit: Flag = False
    """Submit it; without this it is only printed."""
    unchecked: Flag = False
    """Do not read the experiment and its overrides here first: they are for code that lies elsewhere."""
    overrides: tyro.conf.Suppress[tuple[str, ...]] = ()

    def check(self) -> None:
        """`Refused` where something could not reach the job as it was written."""
        for text in (self.experiment, *self.overrides):
            if not text.isprintable():
                raise Refused(f"{text!r} holds a character that cannot be printed: leave it out.")
        if self.name:
            safe("--name", self.name, NAME)

    @abc.abstractmethod
    def render(self) -> str:
        """Exactly what is submitted, as text."""

    @abc.abstractmethod
    def start(self) -> int:
        """Submits it; an exit code."""

    @property
    def title(self) -> str:
        """The run's name, made from the experiment's where none is given."""
        stem = Path(self.experiment.removesuffix(".py")).name.split(".")[-1].lower()
        return self.name or re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40].strip("-") or "run"

    @property
    def workdir(self) -> str:
        """The folder of the run as the overrides give it; "" if they do not."""
        words = [part for each in self.overrides for part in each.split("=", 1)]
        return words[words.index("--workdir") + 1] if "--workdir" in words[:-1] else ""

    def command(self, *more: str, runs: str = "runs") -> list[str]:
        """`jaxbig train ...` as a list of arguments; a run that has a name has its folder in `runs`."""
        folder = ["--workdir", f"{runs}/{self.name}"] if self.name and not self.workdir else []
        return ["jaxbig", "train", self.experiment, *self.overrides, *folder, *more]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudLauncher(Launcher):
    """One whose job does not have the environment of this shell."""

    secrets: tuple[str, ...] = ()
    """Names of environment variables that the job needs and nobody should read, such as WANDB_API_KEY. Their values are
    not read here."""

    def check(self) -> None:
        super().check()
        for name in self.secrets:
            safe("--secrets", name, VARIABLE)


def data_variables(data: str, runs: str) -> dict[str, str]:
    """Environment variables that tell a run where its data and its caches are; `data` and `runs` are folders, either
    may be ""."""
    return ({"TFDS_DATA_DIR": data} if data else {}) | (
        {"JAXBIG_CACHE": f"{runs}/{CACHE}"} if runs else {}
    )


def exports(variables: dict[str, str]) -> list[str]:
    """Lines of a shell that set environment variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def safe(option: str, value: str, pattern: str = WORD) -> str:
    """The value; `Refused` if it does not look as such a thing does."""
    if not re.fullmatch(pattern, value):
        raise Refused(f"{option} {value!r}: it must match {pattern}")
    return value


class Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, "|" if "\n" in data else None)


Dumper.add_representer(str, Dumper.represent_str)


def to_yaml(value: Any) -> str:
    """Plain data as YAML, in its own order; what a user wrote is quoted where it would mean something."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, width=math.inf).rstrip()


def at_least(option: str, value: int, least: int = 1) -> None:
    """`Refused` if the value is less."""
    if value < least:
        raise Refused(f"{option} {value}: it must be {least} or more.")


def main(launcher: type[Launcher], module: str, arguments: Sequence[str] | None = None) -> int:
    """Carries out the command line of a launcher: its own options, then `--`, then those of `jaxbig train`."""
    install_pipe_safe_streams()
    try:
        return _main(launcher, module, sys.argv[1:] if arguments is None else arguments)
    except (Refused, Failed) as error:
        print(f"{module}: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, Refused) else 1


def _main(launcher: type[Launcher], module: str, arguments: Sequence[str]) -> int:
    own, overrides = list(arguments), []
    if "--" in own:
        place = own.index("--")
        own, overrides = own[:place], own[place + 1 :]
    job = parse(launcher, own, module, program="python -m")
    job = dataclasses.replace(job, overrides=tuple(overrides))
    job.check()
    if not job.unchecked:
        resolve(job.experiment, job.overrides).check()
    print(job.render(), flush=True)
    if job.submit:
        return job.start()
    print(f"{module}: nothing was started: add --submit", file=sys.stderr)
    return 0
