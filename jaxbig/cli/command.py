"""The base class of all commands: parses options, prints a table or JSON. Needs no JAX."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Self

from jaxbig.cli.tables import Table
from jaxbig.config.options import OutputOptions, option_names, parse
from jaxbig.system.exit_codes import DONE
from jaxbig.system.json_files import to_json_text
from jaxbig.tracking.console import Screen, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(OutputOptions, abc.ABC):
    """A command: its fields are its options, calling it runs it and returns an exit code."""

    @classmethod
    def from_arguments(cls, word: str, arguments: Sequence[str]) -> Self:
        """The command with its options.

        Args:
          word: its name on the command line, as "list".
          arguments: what follows its name.

        Raises:
          Refused: for a wrong argument.
        """
        return parse(cls, arguments, word)

    @classmethod
    def completions(cls, arguments: Sequence[str]) -> list[str]:
        """What a shell can offer for the last argument; `arguments` as of `from_arguments`."""
        return option_names(cls) if arguments[-1].startswith("-") else []

    @abc.abstractmethod
    def __call__(self) -> int:
        """Runs the command; an exit code."""

    def screen(self, quiet: bool = False) -> Screen:
        """The screen and log of this command; `quiet` as if the user had asked for that."""
        return Screen(self.json, quiet=self.quiet or quiet, verbose=self.verbose).with_log()

    def emit(self, value: Any, *tables: Table) -> int:
        """Prints `value` as JSON if `--json` was given, else the tables. Returns `DONE`."""
        if self.json:
            print(to_json_text(value, indent=1))
            return DONE
        for title, rows in tables:
            table(rows, title)
        return DONE
