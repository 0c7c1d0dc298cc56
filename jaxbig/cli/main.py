"""The command line: `jaxbig COMMAND EXPERIMENT [--option value ...]`."""

import contextlib
import errno
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from jaxbig.cli.commands import COMMANDS, load, split, summary
from jaxbig.errors import Failed, Refused
from jaxbig.system.exit_codes import DONE, FAILED, REFUSED, STOPPED
from jaxbig.system.signals import exit_on_ctrl_c
from jaxbig.system.standard_streams import install_pipe_safe_streams
from jaxbig.system.unraisable import install_unraisable_hook

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write to a full disk, or beyond a limit."""


def main() -> None:
    """Runs the command line of this process and exits with its code."""
    install_pipe_safe_streams()
    install_unraisable_hook()
    try:
        code = run(sys.argv[1:])
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(code)
    except Refused as error:
        code = REFUSED
        text = str(error)
    except Failed as error:
        code = FAILED
        text = str(error)
    except OSError as error:
        if error.errno not in FULL:
            raise
        code = FAILED
        text = f"{error.filename or 'the output'} cannot be written: {error.strerror}."
    except KeyboardInterrupt:
        code = STOPPED
        text = "stopped at once; what was saved before is unchanged"
    print(f"jaxbig: {text}", file=sys.stderr, flush=True)
    from jaxbig.distributed.peer_monitor import announce_exit  # here: `list` does without it

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
        import importlib.metadata  # here: `list` does without it

        print(f"jaxbig {importlib.metadata.version('jaxbig')}")
        return DONE
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return print_commands()
    word, rest = split(arguments)
    with exit_on_ctrl_c():
        command = load(word)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # TFDS and Orbax log their internals
    parsed = command.from_arguments(word, rest)
    if parsed.quiet or parsed.verbose:
        parsed.screen()  # for the log of commands that show nothing else
    return parsed()


def print_commands() -> int:
    """Prints all commands and their summaries; an exit code."""
    width = min(shutil.get_terminal_size().columns, 120)
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
