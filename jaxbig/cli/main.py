"""The command line: `jaxbig COMMAND EXPERIMENT [--option value ...]`."""

import contextlib
import difflib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from jaxbig.cli.command import ExperimentCommand
from jaxbig.cli.commands import COMMANDS
from jaxbig.config.discover import load
from jaxbig.config.overrides import parse
from jaxbig.distributed.peer_monitor import announce_exit
from jaxbig.errors import Failed, Refused
from jaxbig.system.determinism import set_deterministic
from jaxbig.system.exit_codes import DONE, FAILED, REFUSED, STOPPED
from jaxbig.system.standard_streams import install_pipe_safe_streams
from jaxbig.tracking.console import table


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
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # TFDS and Orbax log their internals
    if arguments and arguments[0] in ("-V", "--version", "version"):
        print(f"jaxbig {importlib.metadata.version('jaxbig')}")
        return DONE
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return print_commands()
    word, *rest = arguments
    if word == "data" and rest:
        word = f"data {rest[0]}"
        rest = rest[1:]
    if word not in COMMANDS:
        raise Refused(unknown_command(word))
    command: Any = COMMANDS[word]
    if not issubclass(command, ExperimentCommand):
        return parse(command, rest, word)()
    if rest[:1] in (["-h"], ["--help"]):
        print(f"jaxbig {word} EXPERIMENT [--option value ...]: {command.__doc__}")
        print(
            f"The options are those of the experiment: jaxbig {word} NAME --help; "
            f"`jaxbig list` lists the experiments."
        )
        return DONE
    if not rest or rest[0].startswith("-"):
        raise Refused(
            f"{word} needs an experiment first, as in jaxbig {word} NAME; `jaxbig list` lists them."
        )
    name, *options = rest
    default = command(name=name, options=tuple(options), experiment=load(name))
    parsed = parse(command, options, f"{word} {name}", default)
    set_deterministic(parsed.experiment.deterministic, parsed.experiment.reproducible)
    return parsed()


def print_commands() -> int:
    """Prints all commands, a line each; an exit code."""
    print(
        "jaxbig COMMAND [EXPERIMENT] [--option value ...]; "
        "jaxbig COMMAND EXPERIMENT --help lists the options\n"
    )
    table(
        [
            {"command": name, "does": (command.__doc__ or "").splitlines()[0]}
            for name, command in COMMANDS.items()
        ]
    )
    return DONE


def unknown_command(word: str) -> str:
    """The message for a word that is no command, with the nearest one."""
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
    nearest = f"the nearest is {near[0]}; " if near else ""
    kind = "option" if word.startswith("-") else "command"
    return f"there is no {kind} {word!r}: {nearest}the commands are {', '.join(COMMANDS)}."
