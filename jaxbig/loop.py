"""The loop: batch, step, log, evaluate, checkpoint, next; the only place with effects."""

import contextlib
import functools
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.checkpoint import Checkpoints
from jaxbig.data.base import Rows, Source
from jaxbig.data.stream import eval_batches, train_batches
from jaxbig.experiment import Experiment, flat, to_json
from jaxbig.guard import FAULT, Bad, Watch, leave_out, left_out
from jaxbig.mesh import local_rows, put
from jaxbig.objectives.base import Sum, Sums
from jaxbig.pictures import draw_attention
from jaxbig.planning.chips import peak_of
from jaxbig.planning.flops import model_flops
from jaxbig.processes import agree, first, gather, interruptible, leading, leave_at_once
from jaxbig.resume import begin
from jaxbig.state import TrainState
from jaxbig.step import Program, make_program
from jaxbig.tracking.metrics import Metrics, read_metrics, write_json
from jaxbig.tracking.screen import Screen
from jaxbig.watchdog import WAITS, At, watchdog
from jaxbig.workdir import hold, versions

logger = logging.getLogger("jaxbig")
Summary = dict[str, Any]
WAIT, SLOW, WARN_EVERY = 0.2, 3, 50  # a run waits for data if so many logs in a row spent more than this share of time


def fit(experiment: Experiment, workdir: Path, screen: Screen, fork: bool = False) -> Summary:
    """Trains to `experiment.steps`, from the last good checkpoint in `workdir` or from the beginning.

    Gives what `summary.json` holds: `step`, `metrics`, `state_sha256`, `interrupted`, ... On SIGTERM or Ctrl-C
    it finishes the step, saves, and gives the summary with `interrupted` true.
    """
    agree({"workdir": str(workdir), **versions(), **dict(flat(to_json(experiment)))})
    program = make_program(experiment)
    compiled = functools.cache(lambda: compile_step(program))
    with (
        hold(workdir),
        program.activate(),
        interruptible() as asked_to_stop,
        watchdog(experiment.guard.stuck_after) as at,
    ):
        while True:
            try:
                return go_on(program, compiled, workdir, screen, fork, asked_to_stop, at)
            except Bad as bad:  # the guard's policy is to roll back
                first(functools.partial(leave_out, workdir, bad, experiment.guard))
                logger.warning("%s; going back to the last checkpoint, to leave that batch out", bad)
                fork = False


def go_on(
    program: Program,
    compiled: Callable[[], tuple[Any, int]],
    workdir: Path,
    screen: Screen,
    fork: bool,
    asked_to_stop: Callable[[int], bool],
    at: At,
) -> Summary:
    """From the last good checkpoint to the end, or to where it is asked to stop; `Bad` at a step to be left out."""
    experiment = program.experiment
    with contextlib.ExitStack() as stack:
        checkpoints = open_checkpoints(experiment, workdir)
        stack.callback(checkpoints.close)
        start, state, digest = begin(program, checkpoints, workdir, fork)
        metrics = Metrics(workdir, start, leading())
        stack.callback(metrics.close)

        def log(step: int, values: dict[str, float]) -> None:
            metrics.write(step, "train", values)
            screen.train(step, values)

        train, held_out = experiment.data.source("train"), experiment.data.source("eval")
        train_step, flops = compiled() if start < experiment.steps else (None, 0)
        gather("compiled")  # over the devices nobody waits for long
        batches = stack.enter_context(contextlib.closing(feed(program, train, start, experiment.steps)))
        watch = Watch(experiment.guard, program.abstract.params, leading())
        step, report = start, Report(experiment, log, flops, watch, at)
        screen.start(start, experiment.steps)
        stack.callback(screen.stop)
        stack.push(lambda kind, error, trace: None if kind is Bad else leave_at_once(kind, error, trace))
        without = first(lambda: left_out(workdir))
        for step, state in run_steps(program, train_step, state, batches, start, report, without):  # noqa: B020
            last, stopping = step == experiment.steps, asked_to_stop(step)
            evaluating = last or step % experiment.evaluate_every == 0
            saving = last or stopping or step % experiment.checkpoint_every == 0
            means: dict[str, float] = {}
            if evaluating or saving:
                report.flush()
            if evaluating:
                means = evaluate(program, state, held_out, lambda: at(step, "evaluates"))  # noqa: B023
                metrics.write(step, "eval", means)
                screen.evaluation(step, means)
            if saving:
                at(step, "saves")
                watch.before_saving(step, state)
                digest = checkpoints.save(step, state, means)
            checkpoints.wait(only_if_done=True)
            if stopping:
                break
            if evaluating or saving:
                report.restart()
        checkpoints.wait()
        at(step, "")
        summary = first(lambda: summarize(experiment, workdir, step, digest))
        if step == experiment.steps and draw_attention(program, state, held_out, workdir / "attention.png"):
            logger.info("drew where it looks: %s", workdir / "attention.png")
    return summary


def feed(program: Program, source: Source, start: int, stop: int) -> Generator[Rows]:
    """This process's rows of the batches of steps start + 1 to `stop`, read ahead."""
    e, mine = program.experiment, local_rows(program.mesh, program.experiment.data.batch)
    return train_batches(source, e.seed, start, stop, e.data.batch, e.readers, mine, e.workers, e.read_ahead)


def run_steps(
    program: Program,
    train_step: Any,
    state: TrainState,
    batches: Iterator[Rows],
    start: int,
    report: "Report",
    left_out: Collection[int] = (),
) -> Iterator[tuple[int, TrainState]]:
    """Makes steps start + 1 to the last; gives (step, state) after each, before the next is begun.

    While the devices make a step, the next batch is read and moved to them; two steps are under way at most. A step
    that is left out changes nothing but the number of steps.
    """
    e = report.experiment
    report.restart()
    batch = report.waited(start, batches, None, program.mesh) if start < e.steps else None
    for step in range(start + 1, e.steps + 1):
        if step in left_out:
            state, metrics = state.replace(step=state.step + 1), None  # type: ignore[attr-defined]
        else:
            state, metrics = train_step(state, batch)
        batch = report.waited(step, batches, metrics, program.mesh) if step < e.steps else None
        report.push(step, metrics)
        report.at(step, "is in the loop")
        yield step, state


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
        at: At = lambda step, doing: None,
    ):
        self.experiment, self.log, self.flops, self.watch, self.at = experiment, log, flops, watch, at
        self.under_way: tuple[int, dict[str, jax.Array]] | None = None
        self.logs, self.quiet_until = 0, 0
        self.waits: list[float] = []
        self.restart()

    def restart(self) -> None:
        """Begins to measure the pace anew, after something that is not training."""
        self.since, self.steps, self.idle = time.perf_counter(), 0, 0.0

    def waited(self, step: int, batches: Iterator[Any], metrics: Any, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
        """The next batch, on the devices. Its reading counts as waited for, whole, if the step under way is done."""
        self.at(step, "reads the next batch")
        began = time.perf_counter()
        rows = next(batches)
        if metrics is None or metrics["loss"].is_ready():
            self.idle += time.perf_counter() - began
        return put(rows, mesh)

    def push(self, step: int, metrics: dict[str, jax.Array] | None) -> None:
        """Takes a step's metrics, if it was made; waits for the step before it, and logs that if it is due."""
        self.flush()
        self.under_way = None if metrics is None else (step, metrics)

    def flush(self) -> None:
        """Waits for the step under way, and logs it if it is due."""
        if self.under_way is None:
            return
        (step, metrics), self.under_way = self.under_way, None
        self.at(step, WAITS)
        jax.block_until_ready(metrics)
        self.steps += 1
        self.watch(step, int(metrics.pop(FAULT)))
        if step % self.experiment.log_every and step != self.experiment.steps:
            return
        means = {name: Sum(value, 1.0) for name, value in jax.device_get(metrics).items()}
        seconds = max(time.perf_counter() - self.since, 1e-9)
        pace = rates(self.experiment, self.flops, self.steps / seconds) | {"data_wait": self.idle / seconds}
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
                f"{e.workers}) up to the CPU's cores ({os.cpu_count()}), --readers ({e.readers}), or --read-ahead "
                f"({e.read_ahead} MiB)"
            )


def rates(experiment: Experiment, flops: int, steps_per_second: float) -> dict[str, float]:
    """What so many steps a second are in examples, in tokens where rows have places, and in FLOP/s."""
    devices, counted = jax.device_count(), experiment.data.spec()["mask"].shape
    pace = {"steps_per_second": steps_per_second, "examples_per_second": steps_per_second * counted[0]}
    kind = "tokens" if len(counted) > 1 else "examples"
    pace |= {f"{kind}_per_second": (every := steps_per_second * math.prod(counted))}
    pace |= {f"{kind}_per_second_per_device": every / devices, "model_flops_per_second": flops * steps_per_second}
    peak = peak_of(jax.devices()[0].device_kind)
    return pace | ({"mfu": flops * steps_per_second / (peak * devices)} if peak else {})


def evaluate(
    program: Program, state: TrainState, source: Source, at: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """The objective's metrics over every example of a source, each exactly once; sums are added in float64.

    at: called before each batch.
    """
    e, before = program.experiment, None
    sums: Sums = {}
    mine, threads = local_rows(program.mesh, e.data.batch), max(e.readers, e.workers)
    batches = eval_batches(source, e.data.batch, threads, mine, e.read_ahead, e.evaluate_batches)
    for rows in itertools.chain(batches, [None]):  # each batch is added while the devices have the next
        now = at()
        if rows is not None:
            now, variables = program.eval_step(state, put(rows, program.mesh))
            state = state.replace(variables=variables)  # type: ignore[attr-defined]
        for name, each in jax.device_get(before or {}).items():
            each = jax.tree.map(np.float64, each)
            sums[name] = jax.tree.map(np.add, sums[name], each) if name in sums else each
        before = now
    return program.experiment.objective.summarize(sums)


def open_checkpoints(experiment: Experiment, workdir: Path) -> Checkpoints:
    """The checkpoints of a run, kept as its experiment says."""
    objective, folder = experiment.objective, workdir / "checkpoints"
    best = objective.criterion, objective.higher_is_better
    return Checkpoints(folder, experiment.keep_last, experiment.keep_best, *best)


def compile_step(program: Program) -> tuple[Any, int]:
    """The train step compiled for its shapes and devices, once, and its FLOPs, with nothing counted that is computed
    twice."""
    began = time.perf_counter()
    traced = program.train_step.trace(program.abstract, program.batch)
    compiled, flops = traced.lower().compile(), model_flops(program.experiment, program, traced.jaxpr)
    where = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    logger.info("compiled in %.1f s for %s", time.perf_counter() - began, where)
    return compiled, flops


def summarize(experiment: Experiment, workdir: Path, step: int, digest: str) -> Summary:
    """Writes `summary.json`: the last metrics of each split, the best evaluation, and the digest of the state."""
    lines, metrics = read_metrics(workdir), {}
    for line in lines:
        metrics |= {f"{line['split']}/{name}": line[name] for name in line if name not in ("step", "split")}
    criterion, better = experiment.objective.criterion, max if experiment.objective.higher_is_better else min
    evaluated = [line for line in lines if line["split"] == "eval" and line[criterion] is not None]
    best = better(evaluated, key=lambda line: line[criterion], default=None)
    summary = {
        "step": step,
        "metrics": metrics,
        "best": {"step": best["step"], f"eval/{criterion}": best[criterion]} if best else None,
        "state_sha256": digest,
        "interrupted": step < experiment.steps,
    }
    write_json(workdir / "summary.json", summary)
    return summary
