"""The command line, `jaxbig VERB EXPERIMENT [--option value ...]`; verbs.py says what each does."""

import contextlib
import difflib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence

from jaxbig.cli.command import DONE, FAILED, REFUSED, STOPPED, OfExperiment
from jaxbig.cli.commands import VERBS
from jaxbig.config.discover import load
from jaxbig.config.overrides import parse
from jaxbig.distributed.peer_monitor import announce_exit
from jaxbig.errors import Failed, Refused
from jaxbig.system.determinism import set_deterministic
from jaxbig.system.standard_streams import install_pipe_safe_streams
from jaxbig.tracking.console import table


def main() -> None:
    """Carries out the command line and exits with its code."""
    install_pipe_safe_streams()
    try:
        sys.exit(run(sys.argv[1:]))
    except Refused as error:
        code, text = REFUSED, str(error)
    except Failed as error:
        code, text = FAILED, str(error)
    except KeyboardInterrupt:
        code, text = STOPPED, "stopped at once; what was saved before is untouched"
    print(f"jaxbig: {text}", file=sys.stderr, flush=True)
    announce_exit(f"ended: {text}", at_once=code != REFUSED)
    if code == REFUSED:
        sys.exit(code)
    # after a failed save Orbax's threads would hold the process for minutes, and after a Ctrl-C while it compiled
    # Python's own end is a segmentation fault (jax 0.10.2)
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Carries out a command line; its exit code."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # TFDS and Orbax tell their inner life
    if arguments and arguments[0] in ("-V", "--version", "version"):
        print(f"jaxbig {importlib.metadata.version('jaxbig')}")
        return DONE
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(
            "jaxbig VERB [EXPERIMENT] [--option value ...]; jaxbig VERB EXPERIMENT --help names the options\n"
        )
        table([{"verb": name, "does": verb.__doc__} for name, verb in VERBS.items()])
        return DONE
    word, *rest = arguments
    if word == "data" and rest:
        word, *rest = f"data {rest[0]}", *rest[1:]
    if word not in VERBS:
        near = difflib.get_close_matches(word, VERBS, n=1, cutoff=0.6)
        nearest = f"the nearest is {near[0]}; " if near else ""
        kind = "option" if word.startswith("-") else "verb"
        raise Refused(f"no {kind} {word!r} here: {nearest}all verbs are {', '.join(VERBS)}.")
    verb = VERBS[word]
    if not issubclass(verb, OfExperiment):
        return parse(verb, rest, word)()
    if rest[:1] in (["-h"], ["--help"]):
        print(f"jaxbig {word} EXPERIMENT [--option value ...]: {verb.__doc__}")
        print(
            f"The options are the experiment's: jaxbig {word} NAME --help; `jaxbig list` names the experiments."
        )
        return DONE
    if not rest or rest[0].startswith("-"):
        raise Refused(
            f"{word} needs an experiment first, as in jaxbig {word} NAME; `jaxbig list` names them."
        )
    name, *options = rest
    verb = parse(
        verb,
        options,
        f"{word} {name}",
        verb(name=name, options=tuple(options), experiment=load(name)),
    )
    set_deterministic(verb.experiment.deterministic, verb.experiment.reproducible)
    return verb()
