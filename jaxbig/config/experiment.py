"""An experiment: all settings of a run in one typed value, checked against each other.

A Python file returns it (discover.py loads that). A Flax module is a typed, frozen, documented
dataclass already, so the experiment holds the model itself, and the command line's options and help
come from the fields.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, Self

import flax.linen as nn
from flax import nnx

from jaxbig.config.callback import Callback
from jaxbig.config.evaluator import Evaluator, Every
from jaxbig.config.guard import Guard
from jaxbig.config.lora import LoRA
from jaxbig.config.precision import Precision
from jaxbig.config.serialize import to_json
from jaxbig.constraints import (
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Seed,
    annotations_of,
    settings,
    validate,
)
from jaxbig.data.core.dataset import Data
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Refused
from jaxbig.objectives.base import Objective
from jaxbig.objectives.metric import Metric
from jaxbig.optim.optimizers import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitializeFrom:
    """Parameters that this run starts from; those that do not fit are initialized."""

    run: str = ""
    """The folder of a run; its best checkpoint is used. Empty: initialize all parameters."""
    huggingface: str = ""
    """A folder with config.json and model.safetensors, of a model with the same fields but for its
    head."""
    pattern: str = ".*"
    """A regular expression for the paths of the parameters to copy."""

    def check_fields(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise Refused(f"pattern {self.pattern!r} is no regular expression: {error}.") from None
        if self.run and self.huggingface:
            raise Refused("huggingface and run are both given: a run starts from one of them.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All settings of a run."""

    model: nn.Module
    """A Flax module; its fields are options."""
    objective: Objective
    """The loss and the metrics."""
    data: Data
    """Where the examples are, and what the model sees of them."""
    optimizer: Optimizer
    """Another type: `--optimizer SGD`, likewise `--optimizer.learning-rate WarmupLinear`."""
    mesh: Mesh = Mesh()
    """How the devices share the work."""
    precision: Precision = Precision()
    """The dtypes of parameters and sums."""
    initialize_from: InitializeFrom = InitializeFrom()
    """A run to start from."""
    lora: LoRA = LoRA()
    """Low-rank adapters, to be trained in place of the model's own parameters."""
    ema: FractionBelowOne = 0.0
    """Decay of an exponential moving average of the parameters, such as 0.999, which evaluation
    then uses; in the first steps less, (1 + step) / (10 + step). 0: no average."""
    guard: Guard = Guard()
    """What to do about a bad step or a run that hangs."""
    callbacks: tuple[Callback, ...] = ()
    """Called after steps, evaluations and saves."""
    metrics: tuple[Metric, ...] = ()
    """Metrics of an evaluation over all outputs of the model, such as `AUC()`."""
    evaluators: tuple[Every, ...] = ()
    """Other evaluations, such as `Every(500, KNearest(k=20))`: every 500 steps."""
    steps: PositiveInt
    """The number of training steps."""
    accumulate: PositiveInt = 1
    """Gradient accumulation: the number of parts of each batch. Saves memory; results are equal."""
    reproducible: NonNegativeInt = 0
    """Gradient chunks summed in a fixed order, for equal bits on any number of devices (of the axis
    `data` alone); 0: off, faster. It fixes a CPU's threads, and on a GPU implies
    `deterministic`."""
    deterministic: bool = False
    """On a GPU, use deterministic kernels only: slower, and attention keeps the scores of all
    pairs. TPUs, and CPUs with the same number of cores, are deterministic without it."""
    offload: bool = False
    """Keep the optimizer's state in host memory between steps. `jaxbig plan` shows whether the peak
    of a step falls too."""
    seed: Seed = 0
    """The seed of everything random: initialization, order of examples, dropout."""
    log_every: PositiveInt = 10
    """Steps between two logs of training metrics."""
    evaluate_every: PositiveInt
    """Steps between two evaluations; the last step is always evaluated."""
    evaluate_batches: PositiveInt | None = None
    """The number of batches of an evaluation, the first ones; None: every example once."""
    patience: NonNegativeInt = 0
    """Early stopping: the run ends after this many evaluations in a row without a new best one; 0:
    never."""
    checkpoint_every: PositiveInt
    """Steps between two checkpoints; the last step is always saved."""
    keep_last: PositiveInt = 2
    """The number of latest checkpoints to keep."""
    keep_best: NonNegativeInt = 1
    """The number of best checkpoints to keep, besides the latest."""
    keep_every: NonNegativeInt = 0
    """Keep the checkpoints of steps that are multiples of this too, itself one of
    `checkpoint_every`; 0: none besides."""
    keep_hours: NonNegativeFloat = 0.0
    """Keep a checkpoint each time that this many hours have passed too, and the first; 0: none
    besides."""
    keep_gb: NonNegativeFloat = 0.0
    """With `keep_every` or `keep_hours`: the most GB (of 10^9 bytes) of all checkpoints. Beyond it
    the oldest go; the latest and the best always stay. 0: no limit."""
    reader_threads: NonNegativeInt = 1
    """Threads that prefetch batches, in this process or in each worker; 0 without workers: no
    prefetching."""
    workers: NonNegativeInt = 0
    """Processes that prefetch training batches, for when threads are too slow. An evaluation uses
    as many threads instead."""
    read_ahead: PositiveInt = 1024
    """The most MiB of prefetched batches on each host, shared by its processes; at least a batch
    each."""

    def replace(self, **changes: Any) -> Self:
        """A copy with other values in some fields.

        Args:
          **changes: values by the name of their field, as `steps=100`. A field of a field has a
            dotted name, as in `replace(**{"optimizer.learning_rate.peak": 1e-3})`.

        Raises:
          Refused: there is no such field; the message has the nearest ones.
        """
        changed = self
        for path, value in changes.items():
            changed = replace_field(changed, path.split("."), value)
        return changed

    def __post_init__(self) -> None:
        if isinstance(self.model, nnx.Module):
            name = type(self.model).__name__
            raise Refused(
                f"model is {name}, an NNX module: give its class and arguments instead, as in "
                f"model=nnx.bridge.ToLinen({name}, args=(...))."
            )

    def check(self) -> None:
        """Raises `Refused` for a wrong number or a contradiction, before anything is built."""
        self.check_kinds()
        self.check_callbacks()
        self.check_evaluators()
        to_json(self)  # refuses a field that cannot be saved
        validate(self)
        self.check_enough("classes", "classes")
        self.check_enough("vocab", "tokens")
        self.check_criterion()
        self.check_kept()
        self.precision.check(getattr(self.model, "dtype", "float32"))
        if self.ema and self.optimizer.averages():
            raise Refused(
                f"--ema {self.ema:g}: {type(self.optimizer).__name__} keeps an average of its own, "
                f"which evaluation uses: give --ema 0."
            )

    def check_criterion(self) -> None:
        """Raises `Refused` where no metric gives what ranks the checkpoints."""
        objective = self.objective
        if objective.criterion_of and not self.metrics:
            raise Refused(
                f"{type(objective).__name__} ranks checkpoints by {objective.criterion!r}, and "
                f"there are no metrics: give metrics=({objective.criterion_of}(),)."
            )

    def check_kept(self) -> None:
        """Raises `Refused` where no checkpoint is kept that is asked for, or none would go."""
        if self.keep_every % self.checkpoint_every:
            raise Refused(
                f"--keep-every {self.keep_every}: it must be a multiple of --checkpoint-every "
                f"{self.checkpoint_every}, as no other steps are saved."
            )
        if self.keep_gb and not (self.keep_every or self.keep_hours):
            raise Refused(
                f"--keep-gb {self.keep_gb:g}: it removes none of the latest and best checkpoints: "
                f"give --keep-every or --keep-hours too, or a lower --keep-last."
            )

    def check_kinds(self) -> None:
        """Raises `Refused` where a part is of another kind, such as a folder's name or a class."""
        for name, kind in annotations_of(type(self)).items():
            value = getattr(self, name)
            if not isinstance(kind, type) or kind is bool or isinstance(value, kind):
                continue
            example = ', as jb.InitializeFrom(run="runs/b")' if kind is InitializeFrom else ""
            raise Refused(f"{name} {value!r}: it must be an instance of {kind.__name__}{example}.")

    def check_callbacks(self) -> None:
        """Raises `Refused` where a callback is none."""
        given: object = self.callbacks
        if not isinstance(given, tuple | list):
            raise Refused(f"callbacks {given!r}: it must be a tuple, as in (ShowLoss(),).")
        for each in given:
            if not isinstance(each, Callback):
                raise Refused(
                    f"callbacks: {each!r} is no instance of a class that derives from Callback."
                )

    def check_evaluators(self) -> None:
        """Raises `Refused` where an evaluator is none, or two would write the same rows."""
        given: object = self.evaluators
        if not isinstance(given, tuple | list):
            raise Refused(
                f"evaluators {given!r}: it must be a tuple, as in (Every(500, KNearest()),)."
            )
        taken = {"train", "eval", "test"}
        for each in given:
            if not isinstance(each, Every) or not isinstance(each.evaluator, Evaluator):
                raise Refused(
                    f"evaluators: {each!r} must be an Every with an instance of a class that "
                    f"derives from Evaluator, as in Every(500, KNearest())."
                )
            split = each.evaluator.split
            if not re.fullmatch(r"[\w.-]+", split):
                raise Refused(
                    f"evaluators: the name {split!r} must be a word, as it is the split of rows."
                )
            if split in taken:
                raise Refused(
                    f"evaluators: there are other rows of the split {split!r}: give "
                    f"{type(each.evaluator).__name__} another name."
                )
            taken.add(split)

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


def replace_field(config: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of a config in which one field, perhaps of a field of it, has another value.

    Args:
      config: a dataclass, or a tuple of them.
      path: the names of the fields from there on; the position of an item of a tuple.
      value: of the last field.

    Raises:
      Refused: there is no such field; the message has the nearest ones.
    """
    name, *rest = path
    known: list[str] = []
    if isinstance(config, tuple):
        known = [str(number) for number in range(len(config))]
    elif hasattr(config, "__dataclass_fields__"):
        known = settings(config)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"it has {', '.join(known)}"
        what = type(config).__name__
        raise Refused(f"{what} has no field {name!r}" + (f": {hint}." if known else "."))
    if isinstance(config, tuple):
        place = int(name)
        item = replace_field(config[place], rest, value) if rest else value
        return (*config[:place], item, *config[place + 1 :])
    if rest:
        value = replace_field(getattr(config, name), rest, value)
    return dataclasses.replace(config, **{name: value})
