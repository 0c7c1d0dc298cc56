"""What steps are told of: their metrics, how fast they are made, and whether the devices wait for data."""

import collections
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.cost.hardware import peak_of
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.distributed.watchdog import WAITS, Heartbeat
from jaxbig.objectives.base import Sum
from jaxbig.program.bad_steps import FAULT

logger = logging.getLogger("jaxbig")
WAIT, SLOW, WARN_EVERY = (
    0.2,
    3,
    50,
)  # a run waits for data if so many logs in a row spent more than this share of time


class Report:
    """Turns the metrics of steps, left on the devices, into logs, a step late so that the devices need not wait.

    flops: of a step, by which `model_flops_per_second` and `mfu`, their share of what the chips can do in bf16, go.
    watch: told of each step's fault. at: told what is being done at which step.
    """

    def __init__(
        self,
        experiment: Experiment,
        log: Callable[[int, dict[str, float]], None],
        flops: int,
        watch: Callable[[int, int], None] = lambda step, fault: None,
        at: Heartbeat = lambda step, doing: None,
    ):
        self.experiment, self.log, self.flops, self.watch, self.at = (
            experiment,
            log,
            flops,
            watch,
            at,
        )
        self.under_way: tuple[int, dict[str, jax.Array], float] | None = None
        self.ahead: collections.deque[float] = (
            collections.deque()
        )  # the real share of each batch that is to be taken
        self.logs, self.quiet_until = 0, 0
        self.waits: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Begins to measure the pace anew, after something that is not training."""
        self.since, self.idle = time.perf_counter(), 0.0
        self.real: list[float] = []  # of each step's batch, the share that is not padding

    def waited(
        self, step: int, batches: Iterator[Any], metrics: Any, mesh: jax.sharding.Mesh
    ) -> dict[str, jax.Array]:
        """The next batch, on the devices. Its reading counts as waited for, whole, if the step under way is done."""
        self.at(step, "reads the next batch")
        began = time.perf_counter()
        rows = next(batches)
        if metrics is None or metrics["loss"].is_ready():
            self.idle += time.perf_counter() - began
        self.ahead.append(
            np.count_nonzero(rows["mask"]) / rows["mask"].size
        )  # of this process's rows: no exchange
        return device_put_batch(rows, mesh)

    def push(self, step: int, metrics: dict[str, jax.Array] | None) -> None:
        """Takes a step's metrics, if it was made; waits for the step before it, and logs that if it is due."""
        self.flush()
        real = self.ahead.popleft()
        self.under_way = None if metrics is None else (step, metrics, real)

    def flush(self) -> None:
        """Waits for the step under way, and logs it if it is due."""
        if self.under_way is None:
            return
        (step, metrics, real), self.under_way = self.under_way, None
        self.at(step, WAITS)
        jax.block_until_ready(metrics)
        self.real.append(real)
        self.watch(step, int(metrics.pop(FAULT)))
        if step % self.experiment.log_every and step != self.experiment.steps:
            return
        means = {name: Sum(value, 1.0) for name, value in jax.device_get(metrics).items()}
        seconds = max(time.perf_counter() - self.since, 1e-9)
        pace = rates(
            self.experiment, self.flops, len(self.real) / seconds, statistics.fmean(self.real)
        )
        pace["data_wait"] = self.idle / seconds
        self.restart()
        self.log(step, self.experiment.objective.summarize(means) | pace)
        self.warn(pace["data_wait"])

    def warn(self, data_wait: float) -> None:
        """Says, once every `WARN_EVERY` logs, that the last `SLOW` of them waited for data; the first log may."""
        self.logs += 1
        self.waits = [*self.waits, data_wait][-SLOW:]
        if self.logs > SLOW and min(self.waits) > WAIT and self.logs >= self.quiet_until:
            self.quiet_until = self.logs + WARN_EVERY
            e, share = self.experiment, sum(self.waits) / SLOW
            logger.warning(
                f"the devices waited for data {share:.0%} of the last {SLOW} logs' time: raise --workers (now "
                f"{e.workers}) up to the cores this process may use ({usable_cores()}), --reader-threads ({e.reader_threads}), or "
                f"--read-ahead ({e.read_ahead} MiB)"
            )


def usable_cores() -> int:
    """How many cores this process may use: Slurm and containers leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rates(
    experiment: Experiment, flops: int, steps_per_second: float, real: float = 1.0
) -> dict[str, float]:
    """What so many steps a second are in examples, in tokens where rows have places, and in FLOP/s.

    real: the share of a batch's examples, or places, that is no padding, and is counted; `padding` is the rest.
    """
    devices, counted = jax.device_count(), experiment.data.spec()["mask"].shape
    pace = {
        "steps_per_second": steps_per_second,
        "examples_per_second": steps_per_second * counted[0],
    }
    kind = "tokens" if len(counted) > 1 else "examples"
    pace |= {f"{kind}_per_second": (every := steps_per_second * math.prod(counted) * real)}
    pace |= {
        f"{kind}_per_second_per_device": every / devices,
        "model_flops_per_second": flops * steps_per_second,
    }
    pace |= {"padding": 1 - real} if kind == "tokens" else {}
    peak = peak_of(jax.devices()[0].device_kind)
    return pace | ({"mfu": flops * steps_per_second / (peak * devices)} if peak else {})
