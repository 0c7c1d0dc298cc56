"""The loop: batch, step, log, evaluate, checkpoint, next; the only place with effects."""

import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.checkpoint.manager import Checkpoints
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import flat, to_json
from jaxbig.cost.flops import model_flops
from jaxbig.cost.out_of_memory import check_memory, enough_memory
from jaxbig.data.core.dataset import Rows, Source
from jaxbig.data.pipeline.loader import eval_batches, train_batches
from jaxbig.distributed.multihost import (
    assert_same_on_all,
    exit_on_error,
    gather,
    interruptible,
    is_process_zero,
    on_process_zero,
    processes_on_this_host,
)
from jaxbig.distributed.run_lock import lock_run_directory
from jaxbig.distributed.sharding import device_put_batch, local_rows
from jaxbig.distributed.watchdog import COMPILES, OPENS, Heartbeat, watchdog
from jaxbig.objectives.base import Sums
from jaxbig.program.program import Program, make_program
from jaxbig.program.state import TrainState, without_optimizer
from jaxbig.system.determinism import set_deterministic
from jaxbig.system.json_files import write_json
from jaxbig.tracking.console import Screen
from jaxbig.tracking.figures import optional
from jaxbig.tracking.metrics_writer import Metrics, read_metrics
from jaxbig.train.attention_maps import draw_attention
from jaxbig.train.bad_step_policy import Bad, Watch, leave_out, left_out
from jaxbig.train.resume import begin
from jaxbig.train.skipped_records import agree_on_skipped
from jaxbig.train.step_reporter import Report

logger = logging.getLogger("jaxbig")
Summary = dict[str, Any]


def fit(
    experiment: Experiment, workdir: Path, screen: Screen, fork: bool = False, adopt: bool = False
) -> Summary:
    """Trains to `experiment.steps`, from the last good checkpoint in `workdir` or from the beginning.

    Gives what `summary.json` holds: `step`, `metrics`, `state_sha256`, `interrupted`, ... On SIGTERM or Ctrl-C
    it finishes the step, saves, and gives the summary with `interrupted` true; an evaluation that was due, or under
    way, is made by the run that goes on.
    """
    set_deterministic(experiment.deterministic, experiment.reproducible)
    assert_same_on_all({"workdir": str(workdir), **dict(flat(to_json(experiment)))})
    program = make_program(experiment)
    check_memory(program)
    compiled = functools.cache(lambda: compile_step(program))
    with (
        lock_run_directory(workdir) as held,
        program.activate(),
        interruptible() as asked_to_stop,
        watchdog(experiment.guard.stuck_after) as at,
    ):
        while True:
            try:
                return go_on(
                    program, compiled, workdir, screen, fork, adopt, held, asked_to_stop, at
                )
            except Bad as bad:  # the guard's policy is to roll back
                on_process_zero(functools.partial(leave_out, workdir, bad, experiment.guard))
                logger.warning(
                    "%s; going back to the last checkpoint, to leave that batch out", bad
                )
                fork = adopt = False


def go_on(
    program: Program,
    compiled: Callable[[], tuple[Any, int]],
    workdir: Path,
    screen: Screen,
    fork: bool,
    adopt: bool,
    held: Callable[[], None],
    asked_to_stop: Callable[[], bool],
    at: Heartbeat,
) -> Summary:
    """From the last good checkpoint to the end, or to where it is asked to stop; `Bad` at a step to be left out."""
    experiment, step = program.experiment, 0
    with contextlib.ExitStack() as stack:
        checkpoints = open_checkpoints(experiment, workdir, lambda doing: at(step, doing))
        stack.callback(checkpoints.close)
        with enough_memory(program):
            start, state, digest = begin(program, checkpoints, workdir, fork, adopt, at)
        step = start
        metrics = Metrics(workdir, start, is_process_zero())
        stack.callback(metrics.close)

        def log(step: int, values: dict[str, float]) -> None:
            metrics.write(step, "train", values)
            screen.train(step, values)

        to_evaluate = itertools.chain([COMPILES], itertools.repeat("evaluates"))

        def evaluation(step: int, state: TrainState) -> dict[str, float]:
            at(step, "evaluates")
            return (
                evaluate(
                    program, state, held_out, lambda: at(step, next(to_evaluate)), asked_to_stop
                )
                or {}
            )

        def report_evaluation(step: int, means: dict[str, float]) -> None:
            metrics.write(step, "eval", means)
            screen.evaluation(step, means)

        at(start, OPENS)
        train, held_out = experiment.data.source("train"), experiment.data.source("eval")
        begun = start < experiment.steps and not asked_to_stop()
        at(start, COMPILES)
        train_step, flops = compiled() if begun else (None, 0)
        gather("compiled")  # over the devices nobody waits for long
        if start < experiment.steps and (
            not begun or asked_to_stop()
        ):  # before its first step: all that is, is saved
            return on_process_zero(
                lambda: summarize(experiment, workdir, start, digest, checkpoints.steps())
            )
        batches = stack.enter_context(
            contextlib.closing(feed(program, train, start, experiment.steps))
        )
        watch = Watch(experiment.guard, program.abstract.params, is_process_zero())
        report = Report(experiment, log, flops, watch, at)
        screen.start(start, experiment.steps)
        stack.callback(screen.stop)
        stack.push(
            lambda kind, error, trace: None if kind is Bad else exit_on_error(kind, error, trace)
        )
        stack.enter_context(enough_memory(program, train_step))
        without = on_process_zero(lambda: left_out(workdir))
        due = (
            start
            and evaluation_due(experiment, start)
            and not on_process_zero(lambda: was_evaluated(workdir, start))
        )
        if due:  # the run was stopped before it
            if not (means := evaluation(start, state)):
                return on_process_zero(
                    lambda: summarize(experiment, workdir, start, digest, checkpoints.steps())
                )
            held()
            checkpoints.note(start, means)
            report_evaluation(start, means)
        for step, state in run_steps(program, train_step, state, batches, start, report, without):  # noqa: B020
            held()
            stopping, means = asked_to_stop(), {}
            evaluating = evaluation_due(experiment, step)
            saving = step == experiment.steps or step % experiment.checkpoint_every == 0
            if evaluating or saving or stopping:
                report.flush()
            if (
                evaluating and not stopping
            ):  # who is asked to stop has little time, and saves at once
                if means := evaluation(step, state):
                    report_evaluation(step, means)
                stopping = asked_to_stop()
            if saving or stopping:
                held()
                at(step, "saves")
                agree_on_skipped((train, held_out), local_rows(program.mesh, experiment.data.batch))
                watch.before_saving(step, state)
                digest = checkpoints.save(step, state, means)
            checkpoints.wait(only_if_done=True)
            if stopping:
                break
            if evaluating or saving:
                report.restart()
        checkpoints.wait()
        at(step, "writes summary.json")
        summary = on_process_zero(
            lambda: summarize(experiment, workdir, step, digest, checkpoints.steps())
        )
        at(step, COMPILES)
        with optional(f"no picture {workdir / 'attention.png'}"):
            done = not summary["interrupted"]
            if done and draw_attention(program, state, held_out, workdir / "attention.png"):
                logger.info("drew where it looks: %s", workdir / "attention.png")
    return summary


def feed(program: Program, source: Source, start: int, stop: int) -> Generator[Rows]:
    """This process's rows of the batches of steps start + 1 to `stop`, read ahead."""
    e, mine = program.experiment, local_rows(program.mesh, program.experiment.data.batch)
    return train_batches(
        source,
        range(start, stop),
        seed=e.seed,
        batch=e.data.batch,
        rows=mine,
        threads=e.reader_threads,
        workers=e.workers,
        read_ahead=ahead(e),
    )


def ahead(experiment: Experiment) -> int:
    """MiB of batches that this process may read ahead: its share of what its host may."""
    return max(1, experiment.read_ahead // processes_on_this_host())


def run_steps(
    program: Program,
    train_step: Any,
    state: TrainState,
    batches: Iterator[Rows],
    start: int,
    report: Report,
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


def evaluation_due(experiment: Experiment, step: int) -> bool:
    """Whether a run evaluates after that step."""
    return step == experiment.steps or step % experiment.evaluate_every == 0


def was_evaluated(workdir: Path, step: int) -> bool:
    """Whether `metrics.jsonl` has the evaluation after a step, be it that it was due then."""
    return any(line["split"] == "eval" and line["step"] == step for line in read_metrics(workdir))


def evaluate(
    program: Program,
    state: TrainState,
    source: Source,
    at: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """The objective's metrics over every example of a source, each exactly once; sums are added in float64.

    at: called before each batch. stop: asked then whether to leave off; where it says so, there are no metrics.
    """
    e, before, state = program.experiment, None, without_optimizer(state)
    sums: Sums = {}
    mine, threads = local_rows(program.mesh, e.data.batch), max(e.reader_threads, e.workers)
    batches = eval_batches(
        source,
        batch=e.data.batch,
        rows=mine,
        threads=threads,
        read_ahead=ahead(e),
        max_batches=e.evaluate_batches,
    )
    for rows in itertools.chain(
        batches, [None]
    ):  # each batch is added while the devices have the next
        now = at()
        if stop():
            return None
        if rows is not None:
            now, variables = program.eval_step(state, device_put_batch(rows, program.mesh))
            state = state.replace(variables=variables)  # type: ignore[attr-defined]
        for name, each in jax.device_get(before or {}).items():
            each = jax.tree.map(np.float64, each)
            sums[name] = jax.tree.map(np.add, sums[name], each) if name in sums else each
        before = now
    return program.experiment.objective.summarize(sums)


def open_checkpoints(
    experiment: Experiment, workdir: Path, tell: Callable[[str], None] = lambda doing: None
) -> Checkpoints:
    """The checkpoints of a run, kept as its experiment says."""
    objective, folder = experiment.objective, workdir / "checkpoints"
    best = objective.criterion, objective.higher_is_better
    return Checkpoints(folder, experiment.keep_last, experiment.keep_best, *best, tell)


def compile_step(program: Program) -> tuple[Any, int]:
    """The train step compiled for its shapes and devices, once, and its FLOPs, with nothing counted that is computed
    twice."""
    began = time.perf_counter()
    traced = program.train_step.trace(program.abstract, program.batch)
    with enough_memory(program):
        compiled = traced.lower().compile()
    check_memory(program, compiled)
    flops = model_flops(program.experiment, program, traced.jaxpr)
    where = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    logger.info("compiled in %.1f s for %s", time.perf_counter() - began, where)
    return compiled, flops


def summarize(
    experiment: Experiment, workdir: Path, step: int, digest: str, saved: Collection[int]
) -> Summary:
    """Writes `summary.json`: the last metrics of each split, the best evaluation of a step that is `saved`, of equals
    the newest as `Checkpoints` has it, and the digest of the state."""
    lines, metrics = read_metrics(workdir), {}
    for line in lines:
        metrics |= {
            f"{line['split']}/{name}": line[name] for name in line if name not in ("step", "split")
        }
    criterion, sign = (
        experiment.objective.criterion,
        1 if experiment.objective.higher_is_better else -1,
    )
    evaluated = [
        line for line in lines if line["split"] == "eval" and line.get(criterion) is not None
    ]
    kept = [line for line in evaluated if line["step"] in saved]
    best = max(kept, key=lambda line: (sign * line[criterion], line["step"]), default=None)
    summary = {
        "step": step,
        "metrics": metrics,
        "best": {"step": best["step"], f"eval/{criterion}": best[criterion]} if best else None,
        "state_sha256": digest,
        "interrupted": step < experiment.steps or not was_evaluated(workdir, step),
    }
    write_json(workdir / "summary.json", summary)
    return summary
