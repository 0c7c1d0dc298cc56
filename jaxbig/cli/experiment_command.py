"""Base classes of the commands on an experiment, and on its run, which has a folder."""

import dataclasses
import inspect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from jaxbig.cli.command import Command
from jaxbig.cli.full_command import full_command
from jaxbig.config.config_file import load_with_config, naming_config
from jaxbig.config.experiment import Experiment
from jaxbig.config.experiment_files import run_folder
from jaxbig.config.options import ConfigOption, Flag, FolderOption, option_names, parse, run_name
from jaxbig.config.part_types import change_types
from jaxbig.distributed.multihost import initialize, is_process_zero
from jaxbig.errors import Refused
from jaxbig.system.accelerators import skip_absent_tpu
from jaxbig.system.determinism import set_deterministic
from jaxbig.system.json_files import to_json_text
from jaxbig.tracking.console import Screen


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentCommand(ConfigOption, Command):
    """A command on an experiment."""

    print_command: Flag = False
    """Print the complete command that does the same without --config, and end."""

    name: tyro.conf.Suppress[str]
    options: tyro.conf.Suppress[tuple[str, ...]]
    """Raw options, repeated in the suggested next commands."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]

    @classmethod
    def from_arguments(cls, word: str, arguments: Sequence[str], **given: Any) -> Self:
        if arguments[:1] in (["-h"], ["--help"]):
            parse(cls.without_experiment(word), ["--help"], f"{word} EXPERIMENT")
        if not arguments or arguments[0].startswith("-"):
            raise Refused(
                f"{word} needs an experiment first, as in jaxbig {word} NAME; "
                f"`jaxbig list` lists them."
            )
        skip_absent_tpu()
        name, *options = arguments
        experiment, words = load_with_config(name, options)
        with naming_config(options, words):
            experiment, left = change_types(experiment, words)
            default = cls(name=name, options=tuple(options), experiment=experiment, **given)
            parsed = parse(cls, left, cls.as_typed(word, name), default)
        if parsed.print_command:
            parsed.print_full(word)
            raise SystemExit
        set_deterministic(parsed.experiment.deterministic, parsed.experiment.reproducible)
        return parsed

    @classmethod
    def as_typed(cls, word: str, name: str) -> str:
        """The beginning of the command with the experiment of that name, for messages."""
        return f"{word} {name}"

    def complete(self, word: str) -> list[str]:
        """The words of the command, complete."""
        return full_command(word, self.name, self.options, self.experiment)

    def print_full(self, word: str) -> None:
        """Prints the command, complete; checks its experiment first."""
        self.experiment.check()
        words = self.complete(word)
        print(to_json_text({"command": words}) if self.json else shlex.join(words))

    @classmethod
    def completions(cls, arguments: Sequence[str]) -> list[str]:
        name, *options = arguments
        if not options or not options[-1].startswith("-"):
            return []
        experiment, _ = change_types(*load_with_config(name, options[:-1]))
        return option_names(cls, cls(name=name, options=(), experiment=experiment))

    @classmethod
    def without_experiment(cls, word: str) -> type:
        """The command with its own options alone, for `--help`."""
        text = (
            f"{inspect.getdoc(cls)}\n\nEvery field of the experiment is an option too: jaxbig "
            f"{word} NAME --help. Experiments: jaxbig list, or your own file NAME.py."
        )
        return dataclasses.make_dataclass(
            cls.__name__,
            [(name, tyro.conf.Suppress[Any], None) for name in ("name", "options", "experiment")],
            bases=(cls,),
            namespace={"__doc__": text, "__module__": cls.__module__},
            frozen=True,
            kw_only=True,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderCommand(FolderOption, ExperimentCommand):
    """A command on a run of an experiment, in one process."""

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.workdir or run_folder(self.name) or Path("runs") / run_name(self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCommand(FolderCommand):
    """A command on a run of an experiment, which may have several processes."""

    coordinator: str = ""
    """HOST:PORT of process 0 of a multi-process run; auto: as the cluster reports it."""
    processes: int = 0
    """Number of processes of the run."""
    process: int = -1
    """Index of this process, from 0."""

    def join(self, saves: bool = False) -> Screen:
        """Connects the processes of the run.

        Args:
          saves: whether the command writes checkpoints, as `multihost.initialize` takes it.

        Returns:
          The screen; it is quiet except on process 0.
        """
        initialize(self.coordinator, self.processes, self.process, saves=saves)
        return self.screen(quiet=not is_process_zero())
