"""The cost of monitoring: the watchdog, and the check of each gradient in the compiled step.

    python benchmarks/watching.py

The watchdog: seconds a heartbeat, and heartbeats a step of the real loop. The guard: the time of a
step with and without its check, in turn; the median ratio of the pairs.
"""

import collections
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.config.discover import load
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.distributed.watchdog import Watchdog
from jaxbig.program import program as program_module
from jaxbig.program.program import make_program
from jaxbig.tools.benchmark import bench
from jaxbig.tracking.console import Screen

HEARTBEATS = 1_000_000
PAIRS = 40
STEPS = 10  # of one timing
NAMES = ("digits_convnet", "digits_rnn", "pytext_transformer")


def heartbeat_seconds() -> float:
    """Seconds a heartbeat."""
    dog = Watchdog(1800)
    started = time.perf_counter()
    for step in range(HEARTBEATS):
        dog.heartbeat(step, "is in the loop")
    dog.stop.set()
    return (time.perf_counter() - started) / HEARTBEATS


def heartbeats(name: str) -> tuple[float, float]:
    """Heartbeats a step of the loop, and seconds a step."""
    counts: collections.Counter[str] = collections.Counter()

    def heartbeat(step: int, activity: str) -> None:
        counts[activity] += 1

    result = bench(load(name), STEPS, Screen(json=True).with_log(), heartbeat=heartbeat)
    return counts.total() / (result["rounds"] * STEPS), result["step_seconds"]


def make_no_check(*_: Any, **__: Any) -> Callable[..., Any]:
    """Replaces `make_bad_step_check`: accepts every step."""

    def check(before: Any, after: Any, loss: Any, gradient: Any) -> tuple[Any, Any]:
        return after, jnp.int32(0)

    return check


def stepper(name: str, checked: bool) -> Callable[[], float]:
    """Returns a function that makes `STEPS` steps and returns the seconds of one."""
    experiment = load(name)
    original = program_module.make_bad_step_check
    if not checked:
        program_module.make_bad_step_check = make_no_check
    experiment.data.prepare()
    program = make_program(experiment)
    with program.activate():
        batch = device_put_batch(
            train_batch(experiment.data.source("train"), 0, seed=0, batch=experiment.data.batch),
            program.mesh,
        )
        train_step = program.train_step.trace(program.abstract, program.batch).lower().compile()
        state = [train_step(program.init(), batch)[0]]
    program_module.make_bad_step_check = original

    def run() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            state[0], _ = train_step(state[0], batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - started) / STEPS

    return run


def main() -> int:
    one = heartbeat_seconds()
    worst = 0.0
    print(f"a heartbeat of the watchdog takes {one * 1e9:.0f} ns")
    print(f"{'experiment':20} {'heartbeats/step':>15} {'of a step':>10} {'guard':>8}")
    for name in NAMES:
        count, seconds = heartbeats(name)
        with_check = stepper(name, True)
        without = stepper(name, False)
        for run in (with_check, without):
            run()  # warm up
        ratio = statistics.median(with_check() / without() for _ in range(PAIRS))
        worst = max(worst, count * one / seconds)
        print(
            f"{name:20} {count:15.1f} {count * one / seconds:10.4%} {ratio - 1:+8.2%}", flush=True
        )
    print(f"{'under' if worst < 0.001 else 'NOT under'} 0.1% of a step")
    return worst >= 0.001


if __name__ == "__main__":
    sys.exit(main())
