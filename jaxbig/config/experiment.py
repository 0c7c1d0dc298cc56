"""An experiment: everything a run is, in one typed value that a Python file returns.

A Flax module is a typed, frozen, documented dataclass already, so the experiment holds the model itself, and
the command line's options and help come from the fields.
"""

import dataclasses
import itertools
import math
import re

import flax.linen as nn

from jaxbig.config.guard import Guard
from jaxbig.config.precision import Precision
from jaxbig.config.serialize import flat, to_json
from jaxbig.data.core.dataset import Data
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Refused
from jaxbig.objectives.base import Objective
from jaxbig.optim.optimizers import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitializeFrom:
    """Another run whose parameters this one starts from; those that do not fit start fresh."""

    run: str = ""
    """Its folder; its best checkpoint is taken. Empty: start fresh."""
    pattern: str = ".*"
    """Which parameters are taken: a regular expression over their paths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run is."""

    model: nn.Module
    objective: Objective
    data: Data
    optimizer: Optimizer
    mesh: Mesh = Mesh()
    precision: Precision = Precision()
    initialize_from: InitializeFrom = InitializeFrom()
    guard: Guard = Guard()
    steps: int
    """How many updates the run makes."""
    accumulate: int = 1
    """In how many parts, one after another, each batch's gradient is taken: less memory, equal results."""
    reproducible: int = 0
    """In how many chunks each batch's gradient is taken and added up in a fixed order, so that the bits of a run do not
    depend on how many devices share them; 0: as the compiler likes, which is faster. Its mesh is of `data` alone;
    on a CPU the command line fixes the number of threads too, and a GPU is deterministic as below."""
    deterministic: bool = False
    """On a GPU, take only kernels that give the same bits each time (XLA's flag xla_gpu_deterministic_ops): slower, and
    attention is plain, with the scores of all pairs in memory. A TPU, and a CPU with the same number of cores, give the
    same bits without it."""
    offload: bool = False
    """Keeps the optimizer's state in the host's memory, from where each step fetches it: less is held between steps;
    whether a step's peak falls, `plan` says."""
    seed: int = 0
    """Of everything random: initial values, order of examples, dropout."""
    log_every: int = 10
    """Steps between two lines of training metrics."""
    evaluate_every: int
    """Steps between two evaluations; the last step is always evaluated."""
    evaluate_batches: int | None = None
    """How many batches an evaluation has at most, the first ones; None: every example, once."""
    checkpoint_every: int
    """Steps between two checkpoints; the last step is always saved."""
    keep_last: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: int = 1
    """How many of the best evaluated checkpoints are kept besides."""
    readers: int = 1
    """Threads that read batches ahead, in this process or in each worker; 0 without workers: each when it is needed."""
    workers: int = 0
    """Processes that read batches ahead in place of this one, where threads do not keep up; evaluation is read by as
    many threads."""
    read_ahead: int = 1024
    """MiB of batches that are read ahead at most on each host, shared by its processes; one batch each at least."""

    def check(self) -> None:
        """`Refused` where a number cannot be right, before anything is built."""
        values = dict(flat(to_json(self)))
        for path, value in values.items():
            if not isinstance(value, int | float):
                continue
            name = next((part for part in reversed(path.split(".")) if not part.isdigit()), "")
            least, below = RANGES.get(name, (-math.inf, math.inf))
            most, wrong = (
                UP_TO.get(name, math.inf),
                f"--{path.replace('_', '-')} {value}: it must be",
            )
            if not math.isfinite(value):
                raise Refused(f"{wrong} a finite number.")
            if not least <= value < below or value > most:
                above = f" or more and below {below}" if below < math.inf else " or more"
                raise Refused(f"{wrong} {least}{f' to {most}' if most < math.inf else above}.")
            top = values.get(f"{path.removesuffix(name)}{RISING.get(name)}")
            if isinstance(top, int | float) and value > top:
                raise Refused(f"{wrong} at most its {RISING[name]}, {top}.")
        for name, where in itertools.product(("classes", "vocab"), ("model", "objective")):
            there, room = (getattr(each, name, None) for each in (self.data, getattr(self, where)))
            if (
                isinstance(there, int) and isinstance(room, int) and there > room
            ):  # what is beyond counts as nothing
                kind = {"vocab": "tokens"}.get(name, name)
                raise Refused(
                    f"the data has {there} {kind}, and --{where}.{name} {room}: it must be {there} or more."
                )
        self.guard.check()
        self.precision.check(getattr(self.model, "dtype", "float32"))
        try:
            re.compile(self.initialize_from.pattern)
        except re.error as error:
            raise Refused(
                f"--initialize-from.pattern {self.initialize_from.pattern!r} is no regular expression: {error}."
            ) from None


# What a field of such a name may hold, or each of its numbers, wherever it stands: least, and what it must stay below,
# or what it may reach. One name, one thing.
COUNTS = "steps log_every evaluate_every checkpoint_every keep_last batch length depth width heads layers channels "
COUNTS += "experts_per_token accumulate expansion rotary_base patch size "
COUNTS += (
    "classes types embedding kernel stride vocab kv_heads mlp_width max_length window target_vocab "
)
COUNTS += "loss_scale_steps remat_group evaluate_batches learned_from samples sample_rate hop mels read_ahead "
COUNTS += "ratio limit repeat count shape target_shape"
RANGES = {name: (1, math.inf) for name in COUNTS.split()}
RANGES |= {
    name: (0, 1) for name in ("dropout", "drop_path", "b1", "b2", "momentum", "smoothing", "rate")
}
FROM_0 = "keep_best reproducible readers workers warmup peak end clip_norm l1 l2 weight_decay experts load_balance_loss router_z_loss "
FROM_0 += "loss_scale most_skips spike stuck_after brightness contrast saturation magnitude padding skip_bad_records "
FROM_0 += "canvas lowest highest"
RANGES |= {name: (0, math.inf) for name in FROM_0.split()}
RANGES |= {
    "seed": (0, 2**32),
    "eval_share": (0, 1),
    "alpha": (1e-3, math.inf),
    "floor": (1e-30, math.inf),
}
RANGES |= {"share": (1e-3, math.inf), "std": (1e-6, math.inf)}
UP_TO = {"probability": 1, "least": 1, "most": 1, "share": 1, "hue": 0.5}
RANGES |= {name: (0, math.inf) for name in UP_TO if name not in RANGES}
RISING = {"least": "most", "lowest": "highest", "smallest": "largest"}
