"""The training batches of a run on its devices, each read while the devices make a step."""

import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import jax

from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Rows, Source
from jaxbig.data.pipeline.loader import train_batches
from jaxbig.distributed.multihost import processes_on_this_host
from jaxbig.distributed.sharding import device_put_batch, local_rows
from jaxbig.distributed.watchdog import Heartbeat
from jaxbig.program.program import Program
from jaxbig.train.step_profiler import READS_BATCH
from jaxbig.train.step_reporter import StepReporter


class BatchLoader:
    """Yields (step, batch on the devices) for steps start + 1 to stop.

    The loop calls `prefetch` once it has started a step, so that the next batch is read and moved
    while the devices work. One batch is ahead on the devices, more in host memory (`host_batches`).
    """

    def __init__(
        self,
        batches: Iterator[Rows],
        reporter: StepReporter,
        mesh: jax.sharding.Mesh,
        *,
        start: int,
        stop: int,
        heartbeat: Heartbeat = lambda step, activity: None,
    ):
        """
        Args:
          batches: this process's rows of the batches of steps start + 1 to stop.
          reporter: receives the time that the devices waited for each batch.
          mesh: devices that the batches are moved to.
          start: the last step that was made.
          stop: the last step to make.
          heartbeat: called with (step, activity) before each read.
        """
        self.batches = batches
        self.reporter = reporter
        self.mesh = mesh
        self.start = start
        self.stop = stop
        self.heartbeat = heartbeat
        self.ahead: dict[str, jax.Array] | None = None

    def __iter__(self) -> Iterator[tuple[int, dict[str, jax.Array]]]:
        self.prefetch(self.start, None)
        for step in range(self.start + 1, self.stop + 1):
            yield step, self.take()

    def take(self) -> dict[str, jax.Array]:
        """The batch that was prefetched; nothing here holds its memory afterwards."""
        batch = self.ahead
        assert batch is not None, "prefetch() was not called after the step before"
        self.ahead = None
        return batch

    def prefetch(self, step: int, metrics: Mapping[str, Any] | None) -> None:
        """Reads the batch of the step after `step`, if any, and starts to move it.

        If the devices are idle at its end, all of the time counts as waiting for data.

        Args:
          step: the step that the devices make.
          metrics: its metrics, still being computed; None if the devices have nothing to do.
        """
        if step >= self.stop:
            return
        self.heartbeat(step, "reads the next batch")
        with jax.profiler.TraceAnnotation(READS_BATCH):
            began = time.perf_counter()
            rows = next(self.batches)
            idle = metrics is None or metrics["loss"].is_ready()
            self.reporter.record_batch(rows["mask"], time.perf_counter() - began if idle else 0.0)
            self.ahead = device_put_batch(rows, self.mesh)


def host_batches(program: Program, source: Source, *, start: int, stop: int) -> Generator[Rows]:
    """This process's rows of the batches of steps start + 1 to `stop`, read ahead on the host."""
    experiment = program.experiment
    return train_batches(
        source,
        range(start, stop),
        seed=experiment.seed,
        batch=experiment.data.batch,
        rows=local_rows(program.mesh, experiment.data.batch),
        threads=experiment.reader_threads,
        workers=experiment.workers,
        read_ahead=read_ahead_limit(experiment),
    )


def read_ahead_limit(experiment: Experiment) -> int:
    """MiB of batches that this process may read ahead: its share of its host's limit."""
    return max(1, experiment.read_ahead // processes_on_this_host())
