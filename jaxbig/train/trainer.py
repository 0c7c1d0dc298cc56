"""The training loop: batch, step, report, evaluate, save, next; `fit` and its `Trainer`."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxbig.checkpoint.manager import CheckpointManager, OnSaved, ReportActivity
from jaxbig.config.callback import Callback
from jaxbig.config.evaluator import Evaluator
from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import flat, to_json
from jaxbig.cost.flops import model_flops
from jaxbig.cost.out_of_memory import check_memory, enough_memory
from jaxbig.data.core.dataset import Source
from jaxbig.distributed.multihost import (
    assert_same_on_all,
    exit_on_error,
    gather,
    interruptible,
    is_process_zero,
    on_process_zero,
)
from jaxbig.distributed.run_lock import lock_run_directory
from jaxbig.distributed.sharding import local_rows
from jaxbig.distributed.watchdog import (
    CALLS,
    COMPILES,
    EVALUATORS,
    OPENS,
    STARTS,
    Heartbeat,
    watchdog,
)
from jaxbig.program.bad_steps import FAULT
from jaxbig.program.program import Program, make_program, unsharded_matrices
from jaxbig.program.state import TrainState
from jaxbig.program.teacher import TEACHER
from jaxbig.system.compilation_cache import use_compilation_cache, watch_cache
from jaxbig.system.determinism import set_deterministic
from jaxbig.system.json_files import write_json
from jaxbig.tracking.console import Screen
from jaxbig.tracking.figures import optional
from jaxbig.tracking.metrics_writer import MetricsWriter, last_metrics, read_metrics
from jaxbig.train.attention_maps import draw_attention
from jaxbig.train.bad_step_policy import BadStepError, BadStepHandler, leave_out, left_out
from jaxbig.train.batch_loader import BatchLoader, host_batches
from jaxbig.train.determinism import STEPS, prove_determinism
from jaxbig.train.early_stopping import out_of_patience
from jaxbig.train.epochs import describe_sizes
from jaxbig.train.passes import (
    Evaluation,
    StopRequestedError,
    check_evaluators,
    evaluate,
    run_evaluator,
)
from jaxbig.train.replica_check import ReplicaCheck
from jaxbig.train.resume import initialize_or_resume
from jaxbig.train.skipped_records import agree_on_skipped
from jaxbig.train.step_profiler import StepProfiler, dump_step
from jaxbig.train.step_reporter import StepReporter
from jaxbig.train.teacher import restore_teacher

log = logging.getLogger("jaxbig")
Summary = dict[str, Any]


class Trained(NamedTuple):
    """What a run ends with."""

    program: Program
    state: TrainState
    summary: Summary
    """The content of `summary.json`: `step`, `metrics`, `best`, `state_sha256`, `interrupted`."""
    signals: list[int]
    """The signals that asked it to stop."""


def fit(
    experiment: Experiment,
    workdir: Path,
    screen: Screen,
    *,
    fork: bool = False,
    adopt: bool = False,
    resume_from: str = "",
    profile: range = range(0),
    dump: bool = False,
) -> Summary:
    """Trains as `train` does; returns the content of `summary.json`."""
    return train(
        experiment,
        workdir,
        screen,
        fork=fork,
        adopt=adopt,
        resume_from=resume_from,
        profile=profile,
        dump=dump,
    ).summary


def train(
    experiment: Experiment,
    workdir: Path,
    screen: Screen,
    *,
    fork: bool = False,
    adopt: bool = False,
    resume_from: str = "",
    profile: range = range(0),
    dump: bool = False,
) -> Trained:
    """Trains to `experiment.steps`, resuming from the last good checkpoint if there is one.

    On SIGTERM or Ctrl-C it finishes the step, saves, and returns with `interrupted` true. An
    evaluation that was due or in progress is then made by the run that resumes.

    Args:
      experiment: what to train.
      workdir: the run's directory.
      screen: where progress is shown.
      fork: if the directory holds another run, move that aside and start from its weights.
      adopt: if `run.json` is lost, take the checkpoints there for this run's.
      resume_from: last, best or a step: go back to that checkpoint, and keep what came after it
        aside.
      profile: steps to trace into `profile/` of the directory.
      dump: write the jaxpr and the HLO of the train step into `dump/` of the directory.
    """
    set_deterministic(experiment.deterministic, experiment.reproducible)
    given = {"workdir": str(workdir), "resume-from": resume_from}
    assert_same_on_all({**given, **dict(flat(to_json(experiment)))})
    program = make_program(experiment)
    use_compilation_cache()
    check_memory(program)
    report_unsharded(program)
    signals: list[int] = []
    with (
        lock_run_directory(workdir) as check_lock,
        program.activate(),
        interruptible(signals.append) as should_stop,
        watchdog(experiment.guard.stuck_after, experiment.guard.stuck_factor) as heartbeat,
    ):
        trainer = Trainer(
            program,
            workdir,
            screen,
            check_lock=check_lock,
            should_stop=should_stop,
            heartbeat=heartbeat,
            profiler=StepProfiler(profile if is_process_zero() else range(0), workdir),
            dump=dump,
        )
        while True:
            try:
                state, summary = trainer.run(fork=fork, adopt=adopt, resume_from=resume_from)
                return Trained(program, state, summary, signals)
            except BadStepError as bad:  # the policy is to roll back
                on_process_zero(functools.partial(leave_out, workdir, bad, experiment.guard))
                log.warning("%s; going back to the last checkpoint, to leave that batch out", bad)
                fork = False
                adopt = False
                resume_from = ""


class Trainer:
    """One experiment in one run directory.

    `run` may be called again after a `BadStepError`: it opens everything again and resumes from the
    last checkpoint; the compiled step is reused. All processes of a run take the same branches, and
    call `should_stop` and whatever communicates equally often.

    Attributes:
      experiment: what is trained.
      program: its compiled functions and their shapes.
      workdir: the run's directory.
      screen: where progress is shown.
      check_lock: raises if the run no longer owns its directory.
      should_stop: whether the run was asked to save and stop.
      heartbeat: called with (step, activity) whenever something starts.
      profiler: traces steps, if it was asked to.
      dump: whether to write what the train step is compiled to.
      step: the last step that was made.
      digest: `state_sha256` of the state that was restored, and at the end of the last one saved.
    """

    checkpoints: CheckpointManager
    metrics: MetricsWriter
    train_data: Source
    eval_data: Source
    evaluation: Evaluation
    bad_steps: BadStepHandler
    reporter: StepReporter
    left_out: Collection[int]
    """Steps whose batches a rollback left out."""

    def __init__(
        self,
        program: Program,
        workdir: Path,
        screen: Screen,
        *,
        check_lock: Callable[[], None],
        should_stop: Callable[[], bool],
        heartbeat: Heartbeat,
        profiler: StepProfiler | None = None,
        dump: bool = False,
    ):
        self.experiment = program.experiment
        self.program = program
        self.workdir = workdir
        self.screen = screen
        self.check_lock = check_lock
        self.should_stop = should_stop
        self.heartbeat = heartbeat
        self.profiler = profiler or StepProfiler()
        self.dump = dump
        self.compiled: tuple[Any, int] | None = None
        """The compiled train step and its FLOPs."""
        self.evaluated = False
        """Whether the evaluation step is compiled for the state of this `run`."""
        self.step = 0
        self.digest = ""

    def run(
        self, *, fork: bool = False, adopt: bool = False, resume_from: str = ""
    ) -> tuple[TrainState, Summary]:
        """Trains from the last good checkpoint to the end, or until it is asked to stop.

        The order within a step is what makes a run safe to end anywhere: change it with care.
        """
        with contextlib.ExitStack() as stack:
            state = self.restore(stack, fork=fork, adopt=adopt, resume_from=resume_from)
            if not self.compile():
                return state, self.summarize()
            state = self.prove_determinism(state)
            loader = self.open(stack)
            self.call_start(stack, state)
            if self.evaluation_is_missing() and not self.evaluate_late(state):
                return state, self.summarize()
            if self.step and not self.run_evaluators(
                state, self.evaluators_due(ending=self.out_of_patience())
            ):
                return state, self.summarize()
            self.reporter.restart()
            for step, batch in () if self.out_of_patience() else loader:
                self.profiler.before(step, state)
                self.heartbeat(step, STARTS)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics = self.train_step(step, state, batch)
                del batch  # its memory is free for an evaluation
                loader.prefetch(step, metrics)  # while the devices make the step
                self.reporter.record(step, metrics)
                self.heartbeat(step, "is in the loop")
                self.profiler.after(step, state)
                self.step = step
                self.call_after_step(metrics, state)
                self.replica_check(step, state)
                self.check_lock()
                stopping = self.should_stop()
                evaluating = evaluation_due(self.experiment, step)
                saving = save_due(self.experiment, step)
                due = self.evaluators_due()
                if evaluating or saving or stopping or due:
                    self.reporter.flush()
                means: dict[str, float] = {}
                ending = False
                if evaluating and not stopping:  # time is short after a request to stop: save first
                    means = self.evaluate(state)
                    ending = self.out_of_patience()
                    stopping = self.should_stop()
                if ending:
                    due = self.evaluators_due(ending=True)
                if due and not stopping:
                    stopping = not self.run_evaluators(state, due)
                if stopping or ending:
                    self.heartbeat(step, "is in the loop")
                    self.profiler.stop(state)
                if saving or stopping or ending:
                    self.save(state, means)
                self.checkpoints.wait(only_if_done=True)
                if stopping or ending:
                    break
                if evaluating or saving or due:
                    self.reporter.restart()
            return state, self.finish(state)

    # -- before the loop

    def restore(
        self, stack: contextlib.ExitStack, *, fork: bool, adopt: bool, resume_from: str
    ) -> TrainState:
        """Opens the run directory; the state of its last good checkpoint, or the first state."""
        stack.callback(self.release)  # the last to be called
        self.step = 0
        self.evaluated = False
        self.checkpoints = open_checkpoints(
            self.experiment, self.workdir, self.report_activity, self.call_after_save
        )
        stack.callback(self.checkpoints.close)
        with enough_memory(self.program):
            self.step, state, self.digest = initialize_or_resume(
                self.program,
                self.checkpoints,
                self.workdir,
                fork=fork,
                adopt=adopt,
                resume_from=resume_from,
                heartbeat=self.heartbeat,
                prepared=self.open_evaluators,
            )
        self.metrics = MetricsWriter(self.workdir, self.step, is_process_zero())
        stack.callback(self.metrics.close)
        self.heartbeat(self.step, OPENS)
        self.train_data = self.experiment.data.source("train")
        self.eval_data = self.experiment.data.source("eval")
        batch = self.experiment.data.batch
        self.screen.say(describe_sizes(self.train_data, self.eval_data, batch))
        return state

    def open_evaluators(self) -> None:
        """Opens the data of all evaluators; raises `Refused` if one does not fit the run."""
        self.heartbeat(self.step, OPENS)
        self.evaluation = Evaluation(
            self.program,
            heartbeat=lambda: self.report_activity(EVALUATORS),
            should_stop=self.should_stop,
            folder=self.workdir,
        )
        check_evaluators(self.evaluation)

    def compile(self) -> bool:
        """Compiles the train step; False if the run is asked to stop before its first step."""
        remaining = self.step < self.experiment.steps and not self.out_of_patience()
        stopping = remaining and self.should_stop()
        self.heartbeat(self.step, COMPILES)
        if remaining and not stopping and self.compiled is None:
            self.compiled = compile_step(self.program)
            if self.dump and is_process_zero():
                dump_step(self.program, self.compiled[0], self.workdir / "dump")
        gather("compiled")  # others may compile for long: wait for them here, not in a collective
        return not (remaining and (stopping or self.should_stop()))

    def prove_determinism(self, state: TrainState) -> TrainState:
        """Makes the next steps twice, if the run is to be proved deterministic."""
        stop = min(self.step + STEPS, self.experiment.steps)
        if not self.experiment.guard.prove_determinism or self.compiled is None:
            return state
        rows = host_batches(self.program, self.train_data, start=self.step, stop=stop)
        with contextlib.closing(rows) as batches, enough_memory(self.program, self.compiled[0]):
            return prove_determinism(
                self.program,
                self.compiled[0],
                state,
                list(batches),
                progress=lambda: self.report_activity("makes steps twice"),
            )

    def open(self, stack: contextlib.ExitStack) -> BatchLoader:
        """Starts reading batches and reporting; the loader of the steps that are left."""
        experiment = self.experiment
        compiled, flops = self.compiled or (None, 0)
        batches = host_batches(
            self.program, self.train_data, start=self.step, stop=experiment.steps
        )
        stack.enter_context(contextlib.closing(batches))
        self.bad_steps = BadStepHandler(
            experiment.guard, self.program.abstract.params, verbose=is_process_zero()
        )
        self.replica_check = ReplicaCheck(self.program)
        self.reporter = StepReporter(
            experiment, self.write_train, flops, on_fault=self.bad_steps, heartbeat=self.heartbeat
        )
        self.screen.start(self.step, experiment.steps)
        stack.callback(self.screen.stop)
        self.profiler.open(self.step, compiled)
        stack.callback(self.profiler.close)
        stack.push(leave_at_once_unless_rolled_back)
        stack.enter_context(enough_memory(self.program, compiled))
        self.left_out = on_process_zero(lambda: left_out(self.workdir))
        return BatchLoader(
            batches,
            self.reporter,
            self.program.mesh,
            start=self.step,
            stop=experiment.steps,
            heartbeat=self.heartbeat,
        )

    def out_of_patience(self) -> bool:
        """Whether the run is over for lack of a better evaluation, as process 0 reads its metrics.

        Without `patience` no process asks.
        """
        experiment = self.experiment
        if not experiment.patience:
            return False
        return on_process_zero(lambda: out_of_patience(read_metrics(self.workdir), experiment))

    def evaluation_is_missing(self) -> bool:
        """Whether the run was stopped before an evaluation that was due at its last step."""
        if not self.step or not evaluation_due(self.experiment, self.step):
            return False
        return not on_process_zero(lambda: was_evaluated(self.workdir, self.step))

    def evaluate_late(self, state: TrainState) -> bool:
        """Evaluates the restored state, and adds that to its checkpoint; False if asked to stop."""
        means = self.run_evaluation(state)
        if not means:
            return False
        self.check_lock()
        self.checkpoints.note(self.step, means)
        self.write_evaluation(means)
        return True

    # -- evaluators

    def evaluators_due(self, ending: bool = False) -> list[Evaluator]:
        """The evaluators that are due after the last step that was made; all if it is `ending`."""
        return [
            each.evaluator
            for each in self.experiment.evaluators
            if ending or self.step == self.experiment.steps or self.step % each.steps == 0
        ]

    def run_evaluators(self, state: TrainState, due: Sequence[Evaluator]) -> bool:
        """Runs those evaluators that have no row of this step yet; False if asked to stop."""
        if not due:
            return True
        made = on_process_zero(lambda: evaluated_splits(self.workdir, self.step))
        for each in due:
            if each.split in made:
                continue
            self.heartbeat(self.step, COMPILES)
            try:
                values = run_evaluator(each, self.evaluation, state)
            except StopRequestedError:
                return False
            self.check_lock()
            self.metrics.write(self.step, each.split, values)
            self.screen.evaluator(self.step, each.split, values)
            if self.should_stop():
                return False
        return True

    # -- in the loop

    def train_step(self, step: int, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        """The state after a step, and its metrics; only the count changes if it is left out."""
        if step in self.left_out:
            return state.replace(step=state.step + 1), None  # type: ignore[attr-defined]
        assert self.compiled is not None
        return self.compiled[0](state, batch)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Evaluates and reports; empty if asked to stop meanwhile."""
        means = self.run_evaluation(state)
        if means:
            self.write_evaluation(means)
        return means

    def save(self, state: TrainState, means: dict[str, float]) -> None:
        """Starts to save the state, with the means of its evaluation, in the background."""
        self.check_lock()
        self.heartbeat(self.step, "saves")
        rows = local_rows(self.program.mesh, self.experiment.data.batch)
        agree_on_skipped((self.train_data, self.eval_data), rows)
        self.bad_steps.check_before_save(self.step, state)
        self.replica_check.before_save(self.step, state)
        self.checkpoints.save(self.step, state, means)

    # -- after the loop

    def finish(self, state: TrainState) -> Summary:
        """Waits for the last save; writes the summary and, at the end, draws attention maps."""
        self.checkpoints.wait()
        self.digest = self.checkpoints.state_sha256 or self.digest
        self.heartbeat(self.step, "writes summary.json")
        summary = self.summarize()
        if summary["stopped_early"]:
            patience = self.experiment.patience
            log.info("the run is over: %s evaluations without a new best one", patience)
        self.heartbeat(self.step, COMPILES)
        file = self.workdir / "attention.png"
        with optional(f"no picture {file}"):
            if not summary["interrupted"] and draw_attention(
                self.program, state, self.eval_data, file
            ):
                log.info("drew attention maps: %s", file)
        return summary

    def summarize(self) -> Summary:
        """Writes `summary.json` of the run as far as it is saved."""
        return on_process_zero(
            lambda: summarize(
                self.experiment,
                self.workdir,
                self.step,
                digest=self.digest,
                saved=self.checkpoints.steps(),
            )
        )

    def release(self) -> None:
        """Drops what this `run` opened: a rollback opens it again, and data may be large."""
        for name in (
            "checkpoints",
            "metrics",
            "train_data",
            "eval_data",
            "evaluation",
            "bad_steps",
            "replica_check",
            "reporter",
        ):
            vars(self).pop(name, None)

    # -- callbacks

    def call_start(self, stack: contextlib.ExitStack, state: TrainState) -> None:
        """Calls `start` of all callbacks; their `end` is called when this `run` ends."""

        def call_end(each: Callback) -> None:
            self.heartbeat(self.step, CALLS)
            each.end(self.step)

        for each in self.callbacks():
            stack.callback(call_end, each)
            each.start(self.step, state)

    def callbacks(self) -> Iterator[Callback]:
        """The callbacks, each called when it is taken."""
        for each in self.experiment.callbacks:
            self.heartbeat(self.step, CALLS)
            yield each

    def call_after_step(self, metrics: dict[str, jax.Array] | None, state: TrainState) -> None:
        if metrics is None or not self.experiment.callbacks:
            return
        seen = {name: value for name, value in metrics.items() if name != FAULT}
        for each in self.callbacks():
            each.after_step(self.step, seen, state)

    def call_after_evaluation(self, means: dict[str, float]) -> None:
        for each in self.callbacks():
            each.after_evaluation(self.step, dict(means))

    def call_after_save(self, step: int, folder: Path) -> None:
        for each in self.callbacks():
            each.after_save(step, folder)

    # -- reports

    def report_activity(self, activity: str) -> None:
        """The heartbeat of what happens after the last step."""
        self.heartbeat(self.step, activity)

    def write_train(self, step: int, values: dict[str, float]) -> None:
        self.metrics.write(step, "train", values)
        self.screen.train(step, values)

    def write_evaluation(self, means: dict[str, float]) -> None:
        self.metrics.write(self.step, "eval", means)
        self.screen.evaluation(self.step, means)
        self.call_after_evaluation(means)

    def run_evaluation(self, state: TrainState) -> dict[str, float]:
        """The metrics of the evaluation split; empty if asked to stop meanwhile."""
        self.heartbeat(self.step, "evaluates")
        means = evaluate(
            self.program,
            state,
            self.eval_data,
            heartbeat=self.report_evaluation_batch,
            should_stop=self.should_stop,
        )
        return means or {}

    def report_evaluation_batch(self) -> None:
        self.report_activity("evaluates" if self.evaluated else COMPILES)
        self.evaluated = True


def leave_at_once_unless_rolled_back(
    kind: type[BaseException] | None, error: BaseException | None, trace: Any
) -> None:
    """For an `ExitStack`: of several processes one that fails leaves without the others."""
    if kind is not BadStepError:
        exit_on_error(kind, error, trace)


def evaluation_due(experiment: Experiment, step: int) -> bool:
    """Whether a run evaluates after that step."""
    return step == experiment.steps or step % experiment.evaluate_every == 0


def save_due(experiment: Experiment, step: int) -> bool:
    """Whether a run saves after that step."""
    return step == experiment.steps or step % experiment.checkpoint_every == 0


def was_evaluated(workdir: Path, step: int) -> bool:
    """Whether `metrics.jsonl` has an evaluation after that step."""
    return "eval" in evaluated_splits(workdir, step)


def evaluated_splits(workdir: Path, step: int) -> list[str]:
    """The splits of which `metrics.jsonl` has a row of that step."""
    return [line["split"] for line in read_metrics(workdir) if line["step"] == step]


def open_checkpoints(
    experiment: Experiment,
    workdir: Path,
    report_activity: ReportActivity = lambda activity: None,
    on_saved: OnSaved = lambda step, folder: None,
) -> CheckpointManager:
    """The checkpoints of a run, retained as its experiment says."""
    objective = experiment.objective
    return CheckpointManager(
        workdir / "checkpoints",
        keep_last=experiment.keep_last,
        keep_best=experiment.keep_best,
        keep_every=experiment.keep_every,
        keep_hours=experiment.keep_hours,
        keep_gb=experiment.keep_gb,
        criterion=objective.criterion,
        higher_is_better=objective.higher_is_better,
        report_activity=report_activity,
        on_saved=on_saved,
    )


def report_unsharded(program: Program) -> None:
    """Logs which parameters each device has in full although the mesh shards parameters."""
    paths = unsharded_matrices(program)
    if paths and is_process_zero():
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        log.warning(
            "%s%s: these parameters name no axes, so every device has all of them; to shard them, "
            "use the layers of jaxbig.models.layers, or create them by its `parameter`",
            ", ".join(paths[:3]),
            more,
        )


def compile_step(program: Program) -> tuple[Any, int]:
    """Compiles the train step for its shapes and devices.

    Returns:
      The compiled step, which has its teacher, if any; and its FLOPs without those of
      recomputation.
    """
    teacher = None
    if program.teacher is not None:
        teacher = restore_teacher(program.experiment, program.teacher, program.mesh)
    began = time.perf_counter()
    traced = program.train_step.trace(program.abstract, program.train_batch)
    with enough_memory(program), watch_cache() as hits:
        compiled = traced.lower().compile()
    check_memory(program, compiled)
    flops = model_flops(program.experiment, program, traced.jaxpr)
    cached = " (cached)" if hits else ""
    where = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    log.info("compiled in %.1f s%s for %s", time.perf_counter() - began, cached, where)
    return compiled if teacher is None else StepWithTeacher(compiled, teacher), flops


class StepWithTeacher:
    """A compiled train step that gets the same teacher with every batch."""

    def __init__(self, compiled: Any, teacher: Any):
        self.compiled = compiled
        self.teacher = teacher
        self.memory_analysis = compiled.memory_analysis
        self.as_text = compiled.as_text

    def __call__(self, state: TrainState, batch: Any) -> Any:
        return self.compiled(state, {**batch, TEACHER: self.teacher})


def summarize(
    experiment: Experiment, workdir: Path, step: int, *, digest: str, saved: Collection[int]
) -> Summary:
    """Writes `summary.json`.

    Args:
      experiment: of the run.
      workdir: the run's directory, with its metrics.
      step: the last step that was made.
      digest: `state_sha256` of the state at that step.
      saved: steps of the checkpoints that are there.

    Returns:
      What it wrote: `step`; `metrics`, the last of each split; `best`, the best evaluation of a
      step in `saved`, the newest of equals, as the checkpoints are ranked; `state_sha256`;
      `interrupted`; `stopped_early`: whether it is over for lack of a better evaluation.
    """
    lines = read_metrics(workdir)
    criterion = experiment.objective.criterion
    sign = 1 if experiment.objective.higher_is_better else -1
    candidates = [
        line
        for line in lines
        if line["split"] == "eval" and line.get(criterion) is not None and line["step"] in saved
    ]
    best = max(candidates, key=lambda line: (sign * line[criterion], line["step"]), default=None)
    stopped_early = step < experiment.steps and out_of_patience(lines, experiment)
    evaluators = {each.evaluator.split for each in experiment.evaluators}
    complete = step == experiment.steps and was_evaluated(workdir, step)
    evaluated = evaluators <= set(evaluated_splits(workdir, step))
    summary = {
        "step": step,
        "metrics": last_metrics(lines),
        "best": {"step": best["step"], f"eval/{criterion}": best[criterion]} if best else None,
        "state_sha256": digest,
        "interrupted": not (evaluated and (complete or stopped_early)),
        "stopped_early": stopped_early,
    }
    write_json(workdir / "summary.json", summary)
    return summary
