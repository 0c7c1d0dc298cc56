"""The loop: batch, step, log, evaluate, checkpoint, next; the only place with effects."""

import contextlib
import dataclasses
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbig.checkpoint import Checkpoints
from jaxbig.data.base import Source
from jaxbig.data.stream import eval_batch, eval_steps, train_batches
from jaxbig.errors import Failed, Refused
from jaxbig.experiment import Experiment, diff, fingerprint, identity, to_json
from jaxbig.mesh import activate, put
from jaxbig.state import TrainState, leaves, path_name
from jaxbig.step import Program, make_program
from jaxbig.tracking.metrics import Metrics, read_metrics
from jaxbig.tracking.screen import Screen
from jaxbig.workdir import check_same, describe, fork, forked_from, hold, read_run, write_json

Summary = dict[str, Any]


def fit(experiment: Experiment, workdir: Path, screen: Screen, forking: bool = False) -> Summary:
    """Trains to `experiment.steps`, from the last good checkpoint in `workdir` or from the beginning.

    Gives what `summary.json` holds: `step`, `metrics`, `state_sha256`, `interrupted`, ... On SIGTERM or Ctrl-C
    it finishes the step, saves and gives the summary with `interrupted` true.
    """
    program = make_program(experiment)
    with (
        hold(workdir),
        activate(program.mesh),
        interruptible(screen) as interrupt,
        contextlib.ExitStack() as stack,
    ):
        begin_run(experiment, program, workdir, screen, forking)
        checkpoints = open_checkpoints(experiment, workdir)
        checkpoints.clean()
        start, state, digest = begin(experiment, program, checkpoints, workdir, screen)
        metrics = Metrics(workdir, start)
        stack.callback(metrics.close)
        train, held_out = experiment.data.source("train"), experiment.data.source("eval")
        train_step = compile_step(program, screen) if start < experiment.steps else None

        def log(step: int, values: dict[str, float]) -> None:
            metrics.write(step, "train", values)
            screen.train(step, values)

        step, saved = start, start if digest else None
        report = Report(experiment, log)
        screen.start(start, experiment.steps)
        stack.callback(screen.stop)
        try:
            for step, state in run_steps(experiment, program, train_step, state, train, start, report):
                last = step == experiment.steps
                stopping = interrupt.requested
                evaluating = last or step % experiment.evaluate_every == 0
                saving = last or stopping or step % experiment.checkpoint_every == 0
                if evaluating or saving:
                    report.flush()
                means: dict[str, float] = {}
                if evaluating:
                    means = evaluate(experiment, program, state, held_out)
                    metrics.write(step, "eval", means)
                    screen.evaluation(step, means)
                if saving:
                    digest, saved = checkpoints.save(step, state, means), step
                if evaluating or saving:
                    report.restart()
                checkpoints.wait(only_if_done=True)
                if stopping:
                    break
            if saved is None:  # interrupted before the first step
                digest = checkpoints.save(step, state, {})
            checkpoints.wait()
            summary = summarize(experiment, workdir, step, digest, interrupted=step < experiment.steps)
            write_json(workdir / "summary.json", summary)
        except OSError as error:
            raise Failed(f"step {step}: cannot write in {workdir}: {error.strerror or error}.") from error
    return summary


def run_steps(
    experiment: Experiment,
    program: Program,
    train_step: Callable[..., Any],
    state: TrainState,
    source: Source,
    start: int,
    report: "Report",
) -> Iterator[tuple[int, TrainState]]:
    """Makes steps start + 1 to the last, each given as (step, state) before the next one is begun.

    While the device makes a step the next batch is read and moved to it; two steps are under way at most.
    """
    share = (jax.process_index(), jax.process_count())
    steps, batch_size = experiment.steps, experiment.data.batch
    batches = train_batches(source, experiment.seed, start, steps, batch_size, experiment.readers, *share)
    report.restart()
    batch = report.waited(batches, None, program.mesh)
    for step in range(start + 1, steps + 1):
        state, metrics = train_step(state, batch)
        batch = report.waited(batches, metrics, program.mesh) if step < steps else None
        report.push(step, metrics)
        yield step, state


class Report:
    """Turns the metrics of steps, left on the device, into logs, one step late so that the device never waits."""

    def __init__(self, experiment: Experiment, log: Callable[[int, dict[str, float]], None]):
        self.experiment, self.log = experiment, log
        self.under_way: deque[tuple[int, dict[str, jax.Array]]] = deque()
        self.restart()

    def restart(self) -> None:
        """Begins to measure anew, after something that is not training."""
        self.since, self.steps, self.idle = time.perf_counter(), 0, 0.0

    def waited(self, batches: Iterator[Any], metrics: Any, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
        """The next batch, on the devices. Reading it counts as waited if the step under way was done before it."""
        began = time.perf_counter()
        rows = next(batches)
        if metrics is None or metrics["loss"].is_ready():
            self.idle += time.perf_counter() - began
        return put(rows, mesh)

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics; waits for the step before it, and logs that if it is due."""
        self.under_way.append((step, metrics))
        if len(self.under_way) > 1:
            self._finish()

    def flush(self) -> None:
        """Waits for all steps under way, and logs those that are due."""
        while self.under_way:
            self._finish()

    def _finish(self) -> None:
        step, metrics = self.under_way.popleft()
        jax.block_until_ready(metrics)
        self.steps += 1
        if step % self.experiment.log_every and step != self.experiment.steps:
            return
        seconds = max(time.perf_counter() - self.since, 1e-9)
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        pace = {
            "steps_per_second": self.steps / seconds,
            "examples_per_second": self.steps * self.experiment.data.batch / seconds,
            "data_wait": self.idle / seconds,
        }
        self.restart()
        self.log(step, self.experiment.objective.summarize(values) | pace)


def evaluate(experiment: Experiment, program: Program, state: TrainState, source: Source) -> dict[str, float]:
    """The objective's metrics over every example of a source, each exactly once; sums are added in float64."""
    totals: dict[str, np.ndarray] = {}
    under_way: deque[Any] = deque()

    def finish() -> None:
        for name, each in jax.device_get(under_way.popleft()).items():
            totals[name] = totals.get(name, np.zeros(2)) + np.array([each.total, each.weight], np.float64)

    batch, share = experiment.data.batch, (jax.process_index(), jax.process_count())
    for number in range(eval_steps(source, batch)):
        rows = put(eval_batch(source, number, batch, *share), program.mesh)
        under_way.append(program.eval_step(state, rows))
        if len(under_way) > 2:
            finish()
    while under_way:
        finish()
    means = {name: float(total / weight) for name, (total, weight) in totals.items()}
    return experiment.objective.summarize(means)


def begin_run(experiment: Experiment, program: Program, workdir: Path, screen: Screen, forking: bool) -> None:
    """Prepares the data and writes `run.json`; `Refused` if the folder holds another run, unless forking."""
    run = read_run(workdir)
    description = to_json(experiment)
    try:
        if run is not None:  # what is known without the data first
            fixed = identity(description, run["data_identity"])
            check_same(run, fixed, workdir)
        fixed = identity(description, experiment.data.prepare())
        if run is not None:
            check_same(run, fixed, workdir)
    except Refused:
        if run is None or not forking:
            raise
        fork(workdir)
        run = None
        fixed = identity(description, experiment.data.prepare())
    if run is None and forked_from(workdir) is not None:
        fork(workdir)  # finishes a fork that was killed
    written = describe(description, fixed, fingerprint(fixed), program.mesh)
    if run is not None:
        changes = [
            line
            for name in ("experiment", "versions", "devices", "mesh")
            for line in diff(run[name], written[name])
        ]
        if changes:
            screen.say(f"going on with changes: {'; '.join(changes)}")
    written["history"] = [*(run or {}).get("history", []), *([written["started"]])]
    write_json(workdir / "run.json", written)


def begin(
    experiment: Experiment, program: Program, checkpoints: Checkpoints, workdir: Path, screen: Screen
) -> tuple[int, TrainState, str]:
    """(step, state, digest) from the newest whole checkpoint; else from a forked run's weights, or from the seed."""
    restored = checkpoints.restore(program.abstract)
    if restored is not None:
        checkpoints.set_aside(restored.step)
        screen.say(f"going on from step {restored.step} ({checkpoints.folder / str(restored.step)})")
        return restored.step, restored.state, restored.state_sha256
    state = program.init()
    parent = forked_from(workdir)
    weights = Checkpoints(parent / "checkpoints").restore_parameters() if parent else None
    if weights is not None:
        state = dataclasses.replace(state, params=take_weights(state.params, weights, screen))
    return 0, state, ""


def take_weights(params: Any, weights: dict[str, Any], screen: Screen) -> Any:
    """The parameters with those that are in `weights` with the same path and shape taken from there."""
    fresh: list[str] = []

    def take(path: str, leaf: jax.Array) -> jax.Array:
        found = weights.get(path)
        if found is None or found.shape != leaf.shape or found.dtype != leaf.dtype:
            fresh.append(path)
            return leaf
        return jax.device_put(np.asarray(found), leaf.sharding)

    taken = {path: take(path, leaf) for path, leaf in leaves(params).items()}
    if len(fresh) == len(taken):
        raise Refused(
            "--fork: no weight of the old run has a path and shape of this model: use another --workdir."
        )
    screen.say(
        f"forked: {len(taken) - len(fresh)} of {len(taken)} parameters from the old run"
        + (f"; fresh: {', '.join(fresh)}" if fresh else "")
    )
    return jax.tree_util.tree_map_with_path(lambda path, _: taken[path_name(path)], params)


def open_checkpoints(experiment: Experiment, workdir: Path) -> Checkpoints:
    """The checkpoints of a run, kept as its experiment says."""
    objective = experiment.objective
    return Checkpoints(
        workdir / "checkpoints",
        experiment.keep_last,
        experiment.keep_best,
        objective.criterion,
        objective.higher_is_better,
    )


def compile_step(program: Program, screen: Screen) -> Any:
    """The train step compiled for its shapes and devices, once."""
    began = time.perf_counter()
    compiled = program.train_step.lower(program.abstract, program.batch).compile()
    screen.say(
        f"compiled in {time.perf_counter() - began:.1f} s for {jax.device_count()} {jax.devices()[0].device_kind}"
    )
    return compiled


def summarize(experiment: Experiment, workdir: Path, step: int, digest: str, interrupted: bool) -> Summary:
    """`summary.json`: the last metrics of each split, the best evaluation, and the digest of the state."""
    lines = read_metrics(workdir)
    metrics = {
        f"{line['split']}/{name}": value
        for line in lines
        for name, value in line.items()
        if name not in ("step", "split")
    }
    criterion, better = experiment.objective.criterion, max if experiment.objective.higher_is_better else min
    evaluated = [line for line in lines if line["split"] == "eval" and line[criterion] is not None]
    best = better(evaluated, key=lambda line: line[criterion], default=None)
    return {
        "step": step,
        "metrics": metrics,
        "best": {"step": best["step"], f"eval/{criterion}": best[criterion]} if best else None,
        "state_sha256": digest,
        "interrupted": interrupted,
    }


class Interrupt:
    """Whether the run was asked to stop."""

    requested = False


@contextlib.contextmanager
def interruptible(screen: Screen) -> Iterator[Interrupt]:
    """SIGTERM and Ctrl-C ask the run to stop after its step; a second one stops it at once."""
    interrupt = Interrupt()

    def ask(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        interrupt.requested = True
        screen.say(
            f"{signal.Signals(number).name}: finishing this step and saving (again: stop at once, unsaved)"
        )

    before = {each: signal.signal(each, ask) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
