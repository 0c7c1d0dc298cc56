"""The table of all commands: each is a class in a file of this folder, imported when called."""

import ast
from pathlib import Path

COMMANDS = {
    "list": "jaxbig.cli.list:List",
    "parts": "jaxbig.cli.parts:Parts",
    "show": "jaxbig.cli.show:Show",
    "plan": "jaxbig.cli.plan:Plan",
    "check": "jaxbig.cli.check:Check",
    "train": "jaxbig.cli.train:Train",
    "evaluate": "jaxbig.cli.evaluate:Evaluate",
    "lr-find": "jaxbig.cli.lr_find:LrFind",
    "replay": "jaxbig.cli.replay:Replay",
    "compare": "jaxbig.cli.compare:Compare",
    "bench": "jaxbig.cli.bench:Bench",
    "flags": "jaxbig.cli.flags:Flags",
    "sweep": "jaxbig.cli.sweep:Sweep",
    "data prepare": "jaxbig.cli.data:DataPrepare",
    "data inspect": "jaxbig.cli.data:DataInspect",
}
"""Where each command is, by its name."""


def summary(command: str) -> str:
    """The first paragraph of a command's docstring, read from its file without importing it."""
    module, name = COMMANDS[command].split(":")
    file = Path(__file__).with_name(f"{module.rpartition('.')[2]}.py")
    for each in ast.parse(file.read_bytes()).body:
        if isinstance(each, ast.ClassDef) and each.name == name:
            return " ".join((ast.get_docstring(each) or "").split("\n\n")[0].split())
    raise LookupError(COMMANDS[command])
