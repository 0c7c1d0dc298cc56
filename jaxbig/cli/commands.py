"""The table of all commands, by name."""

from jaxbig.cli.bench import Bench
from jaxbig.cli.check import Check
from jaxbig.cli.command import Command
from jaxbig.cli.compare import Compare
from jaxbig.cli.data import DataInspect, DataPrepare
from jaxbig.cli.evaluate import Evaluate
from jaxbig.cli.flags import Flags
from jaxbig.cli.list import List
from jaxbig.cli.plan import Plan
from jaxbig.cli.replay import Replay
from jaxbig.cli.show import Show
from jaxbig.cli.sweep import Sweep
from jaxbig.cli.train import Train

COMMANDS: dict[str, type[Command]] = {
    "list": List,
    "show": Show,
    "plan": Plan,
    "check": Check,
    "train": Train,
    "evaluate": Evaluate,
    "replay": Replay,
    "compare": Compare,
    "bench": Bench,
    "flags": Flags,
    "sweep": Sweep,
    "data prepare": DataPrepare,
    "data inspect": DataInspect,
}
