"""The table of all commands: each is a class in a file of this folder, imported when called."""

import ast
import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxbig.errors import Refused

COMMANDS = {
    "list": "jaxbig.cli.list:List",
    "parts": "jaxbig.cli.parts:Parts",
    "show": "jaxbig.cli.show:Show",
    "plan": "jaxbig.cli.plan:Plan",
    "check": "jaxbig.cli.check:Check",
    "train": "jaxbig.cli.train:Train",
    "evaluate": "jaxbig.cli.evaluate:Evaluate",
    "predict": "jaxbig.cli.predict:Predict",
    "explain": "jaxbig.cli.explain:Explain",
    "stress": "jaxbig.cli.stress:Stress",
    "average": "jaxbig.cli.average:Average",
    "import": "jaxbig.cli.import_run:Import",
    "export": "jaxbig.cli.export:Export",
    "generate": "jaxbig.cli.generate:Generate",
    "lr-find": "jaxbig.cli.lr_find:LrFind",
    "replay": "jaxbig.cli.replay:Replay",
    "compare": "jaxbig.cli.compare:Compare",
    "profile": "jaxbig.cli.profile:Profile",
    "bench": "jaxbig.cli.bench:Bench",
    "flags": "jaxbig.cli.flags:Flags",
    "sweep": "jaxbig.cli.sweep:Sweep",
    "data prepare": "jaxbig.cli.data:DataPrepare",
    "data inspect": "jaxbig.cli.data:DataInspect",
    "completion": "jaxbig.cli.completion:Completion",
}
"""Where each command is, by its name."""


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
    within = [name for name in COMMANDS if name.startswith(f"{word} ")]
    if difflib.get_close_matches(" ".join(arguments[:2]), within, cutoff=0.85):
        raise Refused(unknown_command(" ".join(arguments[:2])))
    if within:
        names = " or ".join(f"jaxbig {name}" for name in within)
        raise Refused(f"{word} needs a second word: it is {names}.")
    raise Refused(unknown_command(word))


def load(word: str) -> Any:
    """The class of a command, by its name."""
    module, name = COMMANDS[word].split(":")
    return getattr(importlib.import_module(module), name)


def unknown_command(word: str) -> str:
    """The message for a word that is no command, with the nearest one."""
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
    nearest = f"the nearest is {near[0]}; " if near else ""
    kind = "option" if word.startswith("-") else "command"
    return f"there is no {kind} {word!r}: {nearest}the commands are {', '.join(COMMANDS)}."


def summary(command: str) -> str:
    """The first paragraph of a command's docstring, read from its file without importing it."""
    text = ast.get_docstring(_definition(command)) or ""
    return " ".join(text.split("\n\n")[0].split())


def takes_experiment(command: str) -> bool:
    """Whether a command's first argument is an experiment, read likewise."""
    bases = {ast.unparse(base) for base in _definition(command).bases}
    return not bases.isdisjoint(("ExperimentCommand", "FolderCommand", "RunCommand"))


def _definition(command: str) -> ast.ClassDef:
    module, name = COMMANDS[command].split(":")
    file = Path(__file__).with_name(f"{module.rpartition('.')[2]}.py")
    classes = (each for each in ast.parse(file.read_bytes()).body if isinstance(each, ast.ClassDef))
    return next(each for each in classes if each.name == name)
