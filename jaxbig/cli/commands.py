"""What the command line can do: a verb is a class, its fields are its options."""

from typing import Any

from jaxbig.cli.bench import Bench
from jaxbig.cli.check import Check
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

VERBS: dict[str, Any] = {
    **{
        verb.__name__.lower(): verb
        for verb in (List, Show, Plan, Check, Train, Evaluate, Replay, Compare, Bench, Flags)
    },
    "sweep": Sweep,
    "data prepare": DataPrepare,
    "data inspect": DataInspect,
}
