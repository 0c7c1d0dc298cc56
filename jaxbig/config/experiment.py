"""An experiment: everything a run is, in one typed value that a Python file returns.

A Flax module is a typed, frozen, documented dataclass already, so the experiment holds the model itself, and
the command line's options and help come from the fields.
"""

import dataclasses
import re

import flax.linen as nn

from jaxbig.config.guard import Guard
from jaxbig.config.precision import Precision
from jaxbig.config.serialize import to_json
from jaxbig.constraints import NonNegativeInt, PositiveInt, Seed, validate
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

    def check_fields(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise Refused(f"pattern {self.pattern!r} is no regular expression: {error}.") from None


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
    steps: PositiveInt
    """How many updates the run makes."""
    accumulate: PositiveInt = 1
    """In how many parts, one after another, each batch's gradient is taken: less memory, equal results."""
    reproducible: NonNegativeInt = 0
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
    seed: Seed = 0
    """Of everything random: initial values, order of examples, dropout."""
    log_every: PositiveInt = 10
    """Steps between two lines of training metrics."""
    evaluate_every: PositiveInt
    """Steps between two evaluations; the last step is always evaluated."""
    evaluate_batches: PositiveInt | None = None
    """How many batches an evaluation has at most, the first ones; None: every example, once."""
    checkpoint_every: PositiveInt
    """Steps between two checkpoints; the last step is always saved."""
    keep_last: PositiveInt = 2
    """How many of the newest checkpoints are kept."""
    keep_best: NonNegativeInt = 1
    """How many of the best evaluated checkpoints are kept besides."""
    reader_threads: NonNegativeInt = 1
    """Threads that read batches ahead, in this process or in each worker; 0 without workers: each when it is needed."""
    workers: NonNegativeInt = 0
    """Processes that read batches ahead in place of this one, where threads do not keep up; evaluation is read by as
    many threads."""
    read_ahead: PositiveInt = 1024
    """MiB of batches that are read ahead at most on each host, shared by its processes; one batch each at least."""

    def check(self) -> None:
        """Raises `Refused` for a wrong number or a contradiction, before anything is built."""
        to_json(self)  # refuses a field that cannot be saved
        validate(self)
        self.check_enough("classes", "classes")
        self.check_enough("vocab", "tokens")
        self.precision.check(getattr(self.model, "dtype", "float32"))

    def check_enough(self, name: str, noun: str) -> None:
        """Raises `Refused` where the data has more classes, or tokens, than the model or objective.

        What is beyond a model's last would silently count as nothing.
        """
        there = getattr(self.data, name, None)
        for owner in ("model", "objective"):
            room = getattr(getattr(self, owner), name, None)
            if isinstance(there, int) and isinstance(room, int) and there > room:
                raise Refused(
                    f"the data has {there} {noun}, and --{owner}.{name} {room}: "
                    f"it must be {there} or more."
                )
