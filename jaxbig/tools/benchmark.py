"""Times the training loop against its compiled step, called in a bare loop on one batch."""

import contextlib
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from jaxbig.config.experiment import Experiment
from jaxbig.cost.memory import peak_bytes
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.distributed.watchdog import Heartbeat
from jaxbig.errors import Refused
from jaxbig.program.program import make_program
from jaxbig.tracking.console import Screen
from jaxbig.tracking.metrics_writer import MetricsWriter
from jaxbig.train.batch_loader import BatchLoader, host_batches
from jaxbig.train.reference import assume_reference
from jaxbig.train.step_reporter import StepReporter, rates
from jaxbig.train.trainer import compile_step

ROUNDS = 5


def bench(
    experiment: Experiment,
    steps: int,
    screen: Screen,
    *,
    heartbeat: Heartbeat = lambda step, activity: None,
) -> dict[str, Any]:
    """Seconds per step of both, in `ROUNDS` rounds of `steps` steps; `ratio` is the median.

    The loop reads ahead, transfers its batches and logs to files and screen as in training. It does
    not evaluate or save.
    """
    if steps < 1:
        raise Refused(f"--steps-a-round {steps}: it must be 1 or more.")
    program = make_program(experiment)
    assume_reference(experiment, experiment.data.prepare())
    source = experiment.data.source("train")
    ours = []
    bare = []
    waits = []
    padding = []
    batches = contextlib.closing(host_batches(program, source, start=0, stop=steps * ROUNDS))
    with program.activate(), tempfile.TemporaryDirectory() as folder, batches as ahead:
        metrics = MetricsWriter(Path(folder), 0)
        screen.start(0, steps * ROUNDS)

        def log(step: int, values: dict[str, float]) -> None:
            waits.append(values["data_wait"])
            padding.append(values.get("padding", 0.0))
            metrics.write(step, "train", values)
            screen.train(step, values)

        began = time.perf_counter()
        train_step, flops = compile_step(program)
        compile_seconds = time.perf_counter() - began
        batch = device_put_batch(
            train_batch(source, 0, seed=experiment.seed, batch=experiment.data.batch), program.mesh
        )
        state, values = train_step(program.init(), batch)  # the first call is slower
        for number in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(steps):
                before = values
                state, values = train_step(state, batch)
                jax.block_until_ready(before)  # as the loop: one step at a time is under way
            jax.block_until_ready((state, values))
            bare.append((time.perf_counter() - began) / steps)
            stop = steps * (number + 1)
            this_round = dataclasses.replace(experiment, steps=stop)
            reporter = StepReporter(this_round, log, flops, heartbeat=heartbeat)
            loader = BatchLoader(
                ahead, reporter, program.mesh, start=steps * number, stop=stop, heartbeat=heartbeat
            )
            began = time.perf_counter()
            for step, rows in loader:  # as `Trainer.run`
                state, values = train_step(state, rows)
                del rows
                loader.prefetch(step, values)
                reporter.record(step, values)
                heartbeat(step, "is in the loop")
            reporter.flush()
            jax.block_until_ready(state)
            ours.append((time.perf_counter() - began) / steps)
            screen.say(
                f"round {number + 1} of {ROUNDS}: "
                f"loop {ours[-1]:.4f} s a step, bare step {bare[-1]:.4f} s"
            )
        screen.stop()
        metrics.close()
    seconds = statistics.median(ours)
    return {
        "step_seconds": seconds,
        **rates(experiment, flops, 1 / seconds, real=1 - statistics.fmean(padding or [0.0])),
        "model_flops_per_step": flops,
        "ratio": statistics.median(b / o for b, o in zip(bare, ours, strict=True)),
        "against": (
            "the same compiled step in a bare loop, on one batch that is on the device already"
        ),
        "data_wait": statistics.fmean(waits) if waits else None,
        "compile_seconds": compile_seconds,
        "peak_bytes": peak_bytes(train_step),
        "rounds": ROUNDS,
        "steps_a_round": steps,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
