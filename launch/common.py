"""The base of all launchers: their command line, the command that they start, and checks of it.

User input reaches a job as data: as an argument in a list, or quoted for the shell that reads it.
"""

import abc
import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import tyro
import yaml

from jaxbig.config.options import Flag, parse, run_name
from jaxbig.config.overrides import resolve
from jaxbig.errors import Failed, Refused
from jaxbig.system.signals import exit_on_ctrl_c
from jaxbig.system.standard_streams import install_pipe_safe_streams
from jaxbig.system.unraisable import install_unraisable_hook

NAME = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
"""The name of a run, and so of a job, a pod, a machine and a folder."""
WORD = r"[A-Za-z0-9]([A-Za-z0-9_.,:@/+-]*[A-Za-z0-9])?"
"""A name that a cluster has given: a partition, an image, a zone."""
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
CACHE = ".jaxbig-cache"
"""The folder next to the runs for what is built from the data (indexes, tokenizers, packed rows).
All processes of a run share it, and it is kept. No run has this name, as `NAME` starts with a
letter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launcher(abc.ABC):
    """Prints what it would submit; with --submit, submits it."""

    experiment: tyro.conf.Positional[str]
    """As for `jaxbig train`: a name, a .py file or a dotted module."""
    name: str = ""
    """The run's name; its folder is then runs/NAME. At most 40 of a-z, 0-9 and dashes."""
    submit: Flag = False
    """Submit the job; without this it is only printed."""
    unchecked: Flag = False
    """Do not check the experiment and its overrides here first, e.g. if the code is elsewhere."""
    overrides: tyro.conf.Suppress[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raises `Refused` for an option that is invalid or could not reach the job unchanged."""
        for text in (self.experiment, *self.overrides):
            if not text.isprintable():
                raise Refused(
                    f"{text!r} contains a character that cannot be printed: leave it out."
                )
        if self.name:
            safe("--name", self.name, NAME)

    @abc.abstractmethod
    def render(self) -> str:
        """Returns exactly what is submitted, as text."""

    @abc.abstractmethod
    def start(self) -> int:
        """Submits the job; returns an exit code."""

    @property
    def title(self) -> str:
        """The run's name; by default it is made from the experiment's."""
        own = run_name(self.experiment).lower()
        return self.name or re.sub(r"[^a-z0-9]+", "-", own).strip("-")[:40].strip("-") or "run"

    @property
    def workdir(self) -> str:
        """The run's folder in the overrides; "" if they do not give it."""
        words = [part for each in self.overrides for part in each.split("=", 1)]
        return words[words.index("--workdir") + 1] if "--workdir" in words[:-1] else ""

    def command(self, *more: str, runs: str = "runs") -> list[str]:
        """`jaxbig train ...` as a list of arguments; the folder of a named run is in `runs`."""
        folder = ["--workdir", f"{runs}/{self.name}"] if self.name and not self.workdir else []
        return ["jaxbig", "train", self.experiment, *self.overrides, *folder, *more]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudLauncher(Launcher):
    """A launcher whose job does not have the environment of this shell."""

    secrets: tuple[str, ...] = ()
    """Names of secret environment variables that the job needs, such as WANDB_API_KEY. Their values
    are not read here."""

    def check(self) -> None:
        super().check()
        for name in self.secrets:
            safe("--secrets", name, VARIABLE)


def data_variables(data: str, runs: str) -> dict[str, str]:
    """Environment variables for the folders of prepared data and caches.

    Args:
      data: the folder of prepared datasets, or "".
      runs: the folder of runs, or "".
    """
    variables = {}
    if data:
        variables["TFDS_DATA_DIR"] = data
    if runs:
        variables["JAXBIG_CACHE"] = f"{runs}/{CACHE}"
    return variables


def exports(variables: dict[str, str]) -> list[str]:
    """Shell lines that set environment variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def safe(option: str, value: str, pattern: str = WORD) -> str:
    """Returns the value; raises `Refused` if it does not match the pattern."""
    if not re.fullmatch(pattern, value):
        raise Refused(f"{option} {value!r}: it must match {pattern}")
    return value


class Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, "|" if "\n" in data else None)


Dumper.add_representer(str, Dumper.represent_str)


def to_yaml(value: Any) -> str:
    """Plain data as YAML, in its own order; user input is quoted where YAML would interpret it."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, width=math.inf).rstrip()


def at_least(option: str, value: int, least: int = 1) -> None:
    """Raises `Refused` if the value is less."""
    if value < least:
        raise Refused(f"{option} {value}: it must be {least} or more.")


def main(launcher: type[Launcher], module: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a launcher's command line: its options, then `--`, then those of `jaxbig train`.

    Args:
      launcher: the class.
      module: its name in messages.
      arguments: default: the command line.

    Returns:
      An exit code.
    """
    install_pipe_safe_streams()
    install_unraisable_hook()
    try:
        return _main(launcher, module, sys.argv[1:] if arguments is None else arguments)
    except (Refused, Failed) as error:
        print(f"{module}: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, Refused) else 1


def _main(launcher: type[Launcher], module: str, arguments: Sequence[str]) -> int:
    own = list(arguments)
    overrides: list[str] = []
    if "--" in own:
        at = own.index("--")
        overrides = own[at + 1 :]
        own = own[:at]
    job = parse(launcher, own, module, program="python -m")
    job = dataclasses.replace(job, overrides=tuple(overrides))
    with exit_on_ctrl_c():  # nothing is started yet
        job.check()
        if not job.unchecked:
            resolve(job.experiment, job.overrides).check()
        print(job.render(), flush=True)
    if job.submit:
        return job.start()
    print(f"{module}: nothing was started: add --submit", file=sys.stderr)
    return 0
