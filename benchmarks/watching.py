"""What being watched costs: the watchdog, and the guard that looks at every gradient in the compiled step.

    python benchmarks/watching.py

The watchdog: how long one telling takes, and how many there are a step of the real loop. The guard: a step's time with
it and with its looking left out, in turn; the median ratio of pairs.
"""

import collections
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxbig.config.discover import load
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.distributed.watchdog import Watchdog
from jaxbig.program import program as room
from jaxbig.program.program import make_program
from jaxbig.tools.benchmark import bench
from jaxbig.tracking.console import Screen

TELLINGS, PAIRS, STEPS = 1_000_000, 40, 10
NAMES = "digits_convnet", "digits_rnn", "pytext_transformer"


def a_telling() -> float:
    """Seconds that one takes."""
    dog = Watchdog(1800)
    began = time.perf_counter()
    for step in range(TELLINGS):
        dog.heartbeat(step, "is in the loop")
    dog.stop.set()
    return (time.perf_counter() - began) / TELLINGS


def tellings(name: str) -> tuple[float, float]:
    """How many there are a step of the loop, and seconds a step."""
    counts: collections.Counter[str] = collections.Counter()

    def heartbeat(step: int, activity: str) -> None:
        counts[activity] += 1

    result = bench(load(name), STEPS, Screen(json=True), heartbeat=heartbeat)
    return counts.total() / (result["rounds"] * STEPS), result["step_seconds"]


def stepper(name: str, watched: bool) -> Callable[[], float]:
    """Makes `STEPS` steps; gives the seconds that each took."""
    experiment, watch = load(name), room.make_bad_step_check
    if not watched:
        room.make_bad_step_check = lambda *_, **__: (
            lambda before, after, loss, gradient: (after, jnp.int32(0))
        )
    experiment.data.prepare()
    program = make_program(experiment)
    with program.activate():
        batch = device_put_batch(
            train_batch(experiment.data.source("train"), 0, seed=0, batch=experiment.data.batch),
            program.mesh,
        )
        train_step = program.train_step.trace(program.abstract, program.batch).lower().compile()
        state = [train_step(program.init(), batch)[0]]
    room.make_bad_step_check = watch

    def run() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            state[0], _ = train_step(state[0], batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / STEPS

    return run


def main() -> int:
    one, worst = a_telling(), 0.0
    print(f"a telling of the watchdog takes {one * 1e9:.0f} ns")
    print(f"{'experiment':20} {'tellings a step':>15} {'of a step':>10} {'guard':>8}")
    for name in NAMES:
        count, seconds = tellings(name)
        with_it, without = stepper(name, True), stepper(name, False)
        for warm in (with_it, without):
            warm()
        ratio = statistics.median(with_it() / without() for _ in range(PAIRS))
        worst = max(worst, count * one / seconds)
        print(
            f"{name:20} {count:15.1f} {count * one / seconds:10.4%} {ratio - 1:+8.2%}", flush=True
        )
    print(f"{'under' if worst < 0.001 else 'NOT under'} 0.1% of a step")
    return worst >= 0.001


if __name__ == "__main__":
    sys.exit(main())
