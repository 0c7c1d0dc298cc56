"""Computes the metrics of each training step, throughput, and the time spent waiting for data."""

import collections
import logging
import math
import os
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.cost.hardware import peak_of
from jaxbig.distributed.watchdog import WAITS, Heartbeat
from jaxbig.objectives.base import Sum
from jaxbig.program.bad_steps import FAULT

log = logging.getLogger("jaxbig")
DATA_WAIT = 0.2
"""Fraction of a log's time spent waiting for data above which the log counts as slow."""
SLOW = 3
"""Warn after this many slow logs in a row."""
EARLY = 5.0
"""Seconds of training in which slow logs do not count."""
WARN_EVERY = 50
"""Warn once in this many logs."""


class StepReporter:
    """Logs the metrics of steps, one step late, so that the devices do not wait for the host."""

    def __init__(
        self,
        experiment: Experiment,
        write: Callable[[int, dict[str, float]], None],
        flops: int,
        *,
        on_fault: Callable[[int, int], None] = lambda step, fault: None,
        heartbeat: Heartbeat = lambda step, activity: None,
    ):
        """
        Args:
          experiment: says which steps are logged.
          write: called with (step, values) for each step that is logged.
          flops: of one step; the source of `model_flops_per_second` and of `mfu`, their share of
            the chips' bf16 peak.
          on_fault: called with (step, fault code) for every step, good or bad.
          heartbeat: called with (step, activity).
        """
        self.experiment = experiment
        self.write = write
        self.flops = flops
        self.on_fault = on_fault
        self.heartbeat = heartbeat
        self.under_way: tuple[int, dict[str, jax.Array], float] | None = None
        self.shares: collections.deque[float] = collections.deque()
        """Of each batch whose step is not recorded yet, the share that is real, not padding."""
        self.trained = 0.0
        """Seconds between steps, without evaluations and saves."""
        self.logs = 0
        self.quiet_until = 0
        self.waits: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Restarts the throughput timer, e.g. after an evaluation."""
        self.since = time.perf_counter()
        self.data_wait = 0.0
        self.made: list[float] = []
        """Of each step since then, the share of its batch that is not padding."""

    def record_batch(self, mask: np.ndarray, waited: float) -> None:
        """Notes a batch that was read.

        Args:
          mask: of this process's rows; 0 marks padding.
          waited: seconds that the devices waited for it.
        """
        self.data_wait += waited
        self.shares.append(np.count_nonzero(mask) / mask.size)

    def record(self, step: int, metrics: dict[str, jax.Array] | None) -> None:
        """Takes a step's metrics, None if its batch was left out; logs the step before it."""
        self.flush()
        share = self.shares.popleft()
        self.under_way = None if metrics is None else (step, metrics, share)

    def flush(self) -> None:
        """Waits for the step under way, and logs it if it is due."""
        if self.under_way is None:
            return
        step, metrics, share = self.under_way
        self.under_way = None
        self.heartbeat(step, WAITS)
        jax.block_until_ready(metrics)
        self.made.append(share)
        self.on_fault(step, int(metrics.pop(FAULT)))
        if step % self.experiment.log_every and step != self.experiment.steps:
            return
        means = {name: Sum(value, 1.0) for name, value in jax.device_get(metrics).items()}
        seconds = max(time.perf_counter() - self.since, 1e-9)
        speed = rates(
            self.experiment, self.flops, len(self.made) / seconds, real=statistics.fmean(self.made)
        )
        speed["data_wait"] = self.data_wait / seconds
        self.trained += seconds
        self.restart()
        self.write(step, self.experiment.objective.summarize(means) | speed)
        if self.trained > EARLY:
            self.warn(speed["data_wait"])

    def warn(self, data_wait: float) -> None:
        """Warns when the last `SLOW` logs waited for data; the first log may."""
        self.logs += 1
        self.waits = [*self.waits, data_wait][-SLOW:]
        if self.logs > SLOW and min(self.waits) > DATA_WAIT and self.logs >= self.quiet_until:
            self.quiet_until = self.logs + WARN_EVERY
            experiment = self.experiment
            log.warning(
                f"the devices waited for data {sum(self.waits) / SLOW:.0%} of the last {SLOW} "
                f"logs' time: raise --workers (now {experiment.workers}) up to the cores this "
                f"process may use ({usable_cores()}), --reader-threads "
                f"({experiment.reader_threads}), or --read-ahead ({experiment.read_ahead} MiB)"
            )


def usable_cores() -> int:
    """Cores this process may use: Slurm and containers allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rates(
    experiment: Experiment, flops: int, steps_per_second: float, *, real: float = 1.0
) -> dict[str, float]:
    """Converts steps/s to examples/s, to tokens/s where examples are sequences, and to FLOP/s.

    Args:
      experiment: gives the shape of a batch.
      flops: of one step.
      steps_per_second: measured.
      real: share of a batch's examples, or tokens, that is not padding; only these count as tokens
        per second and per device.

    Returns:
      The rates by name; with tokens also `padding`, the rest of a batch, and on chips whose peak
      is known `mfu`.
    """
    devices = jax.device_count()
    counted = experiment.data.spec()["mask"].shape
    sequences = len(counted) > 1
    kind = "tokens" if sequences else "examples"
    per_second = steps_per_second * math.prod(counted) * real
    flops_per_second = flops * steps_per_second
    found = {
        "steps_per_second": steps_per_second,
        "examples_per_second": steps_per_second * counted[0],
    }
    found[f"{kind}_per_second"] = per_second
    found[f"{kind}_per_second_per_device"] = per_second / devices
    found["model_flops_per_second"] = flops_per_second
    if sequences:
        found["padding"] = 1 - real
    peak = peak_of(jax.devices()[0].device_kind)
    if peak:
        found["mfu"] = flops_per_second / (peak * devices)
    return found
