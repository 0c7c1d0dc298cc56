"""The command line: `jaxbig COMMAND EXPERIMENT [--option value ...]`."""

import contextlib
import difflib
import importlib
import importlib.metadata
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from jaxbig.cli.commands import COMMANDS, summary
from jaxbig.distributed.peer_monitor import announce_exit
from jaxbig.errors import Failed, Refused
from jaxbig.system.exit_codes import DONE, FAILED, REFUSED, STOPPED
from jaxbig.system.signals import exit_on_ctrl_c
from jaxbig.system.standard_streams import install_pipe_safe_streams


def main() -> None:
    """Runs the command line of this process and exits with its code."""
    install_pipe_safe_streams()
    try:
        sys.exit(run(sys.argv[1:]))
    except Refused as error:
        code = REFUSED
        text = str(error)
    except Failed as error:
        code = FAILED
        text = str(error)
    except KeyboardInterrupt:
        code = STOPPED
        text = "stopped at once; what was saved before is unchanged"
    print(f"jaxbig: {text}", file=sys.stderr, flush=True)
    announce_exit(f"ended: {text}", at_once=code != REFUSED)
    if code == REFUSED:
        sys.exit(code)
    # after a failed save Orbax's threads would keep the process alive for minutes, and after Ctrl-C
    # during a compilation Python's own exit is a segmentation fault (jax 0.10.2)
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; returns its exit code."""
    if arguments and arguments[0] in ("-V", "--version", "version"):
        print(f"jaxbig {importlib.metadata.version('jaxbig')}")
        return DONE
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return print_commands()
    word, rest = split(arguments)
    with exit_on_ctrl_c():
        command = load(word)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # TFDS and Orbax log their internals
    hide_closed_event_loops()
    parsed = command.from_arguments(word, rest)
    if parsed.quiet or parsed.verbose:
        parsed.screen()  # for the log of commands that show nothing else
    return parsed()


def split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and what follows it.

    Raises:
      Refused: if there is no such command; the message has the nearest one.
    """
    for count in (2, 1):
        word = " ".join(arguments[:count])
        if word in COMMANDS:
            return word, list(arguments[count:])
    word = arguments[0]
    within = [f"jaxbig {name}" for name in COMMANDS if name.startswith(f"{word} ")]
    if within:
        raise Refused(f"{word} needs a second word: it is {' or '.join(within)}.")
    raise Refused(unknown_command(word))


def load(word: str) -> Any:
    """The class of a command, by its name."""
    module, name = COMMANDS[word].split(":")
    return getattr(importlib.import_module(module), name)


def hide_closed_event_loops() -> None:
    """Hides the "Event loop is closed" that Orbax's threads repeat after a failed save."""
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _report_unraisable


def _report_unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def print_commands() -> int:
    """Prints all commands and their summaries; an exit code."""
    width = min(shutil.get_terminal_size().columns, 100)
    column = max(map(len, COMMANDS)) + 2
    print("jaxbig COMMAND [EXPERIMENT] [--option value ...]\n")
    for name in COMMANDS:
        print(
            textwrap.fill(
                summary(name),
                width,
                initial_indent=name.ljust(column),
                subsequent_indent=" " * column,
            )
        )
    print("\njaxbig COMMAND EXPERIMENT --help lists all options; jaxbig list, the experiments.")
    return DONE


def unknown_command(word: str) -> str:
    """The message for a word that is no command, with the nearest one."""
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
    nearest = f"the nearest is {near[0]}; " if near else ""
    kind = "option" if word.startswith("-") else "command"
    return f"there is no {kind} {word!r}: {nearest}the commands are {', '.join(COMMANDS)}."
