"""A run in Python: `fit` trains it, `restore` reads it from its folder, `evaluate` scores it."""

import dataclasses
import difflib
import functools
import signal
from pathlib import Path
from typing import Any

import jax

from jaxbig.checkpoint.digest import digests
from jaxbig.checkpoint.manager import Restored
from jaxbig.config.deserialize import from_run
from jaxbig.config.experiment import Experiment
from jaxbig.config.options import refuse_url
from jaxbig.data.core.dataset import Source, open_split
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Refused
from jaxbig.program.bad_steps import as_asked, as_saved
from jaxbig.program.program import Program, make_program
from jaxbig.program.state import TrainState
from jaxbig.system.compilation_cache import use_compilation_cache
from jaxbig.system.determinism import check_threads, set_deterministic
from jaxbig.tracking.console import Screen
from jaxbig.tracking.metrics_writer import last_metrics, read_metrics
from jaxbig.train import passes, trainer
from jaxbig.train.early_stopping import out_of_patience
from jaxbig.train.epochs import with_epochs
from jaxbig.train.pretrained_state import weights_of
from jaxbig.train.resume import differences, of_shapes, prepare, write_run
from jaxbig.train.run_description import read_run


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run at one of its steps."""

    directory: Path
    """Its folder."""
    experiment: Experiment
    """What was trained."""
    step: int
    """The number of steps made."""
    state: TrainState
    """Arrays on the devices: `params`, `variables` (such as `batch_stats`), `opt_state`, `step`."""
    metrics: dict[str, float]
    """The last metrics of each split up to this step, as `eval/accuracy`."""
    history: list[dict[str, Any]]
    """The rows of `metrics.jsonl`: `step`, `split`, and the metrics of that split. `curve` picks
    one metric; `pandas.DataFrame(run.history)` is a table of all."""
    program: Program
    """Its compiled functions and its mesh."""

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """What an evaluation gives the model, as for `run.experiment.model.apply(run.variables,
        ...)`: `params`, with averages in place of parameters and adapters merged, and what else
        the model has."""
        with self.program.activate():
            state = self.program.merged(self.state)
        return {"params": state.params, **state.variables}

    @property
    def finished(self) -> bool:
        """Whether it has made all its steps, or stopped early for lack of `patience`."""
        past = [row for row in self.history if row["step"] <= self.step]
        return self.step >= self.experiment.steps or out_of_patience(past, self.experiment)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """One metric over time, as `plt.plot(*run.curve("train/loss"))` draws it.

        Args:
          name: a metric with its split, as in `metrics`.

        Returns:
          The steps and the values, of equal length.

        Raises:
          Refused: there is no such metric; the message has the nearest ones.
        """
        split, _, metric = name.partition("/")
        rows = [row for row in self.history if row["split"] == split and metric in row]
        if not rows:
            known = list(self.metrics)
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
            raise Refused(f"{self.directory} has no metric {name!r}: it has {', '.join(near)}.")
        return [row["step"] for row in rows], [row[metric] for row in rows]

    def __repr__(self) -> str:
        criterion = f"eval/{self.experiment.objective.criterion}"
        score = f", {criterion} {self.metrics[criterion]:.4g}" if criterion in self.metrics else ""
        return f"Run({str(self.directory)!r}, step {self.step} of {self.experiment.steps}{score})"


def fit(
    experiment: Experiment,
    directory: str | Path,
    *,
    progress: bool = False,
    epochs: float = 0.0,
    resume_from: str | int = "",
    fork: bool = False,
    adopt: bool = False,
) -> Run:
    """Trains an experiment, or resumes its run from the last good checkpoint in its folder.

    It prints nothing unless asked. Ctrl-C, and signals such as SIGTERM, wait until the step is made
    and saved; then they do what they would have done, so Ctrl-C raises `KeyboardInterrupt`, and the
    same call resumes. A second Ctrl-C stops at once. In another thread than the main one, signals
    are not handled.

    Args:
      experiment: what to train.
      directory: the run's folder.
      progress: show a bar and each evaluation, in a terminal or a notebook.
      epochs: train for this many passes over the training examples; 0: for `experiment.steps`.
      resume_from: last, best or the step of a checkpoint: go back to it; what came after it is kept
        aside.
      fork: if the folder holds another run, move that aside and start from its weights.
      adopt: if its `run.json` is lost, take its checkpoints for this run's.

    Returns:
      The run at its last step.

    Raises:
      Refused: the experiment is invalid, or the folder holds another run.
      Failed: the run cannot continue, such as after a loss that is not finite.
    """
    check_experiment(experiment)
    check_threads(experiment.reproducible)
    set_deterministic(experiment.deterministic, experiment.reproducible)
    folder = Path(directory)
    refuse_url("directory", folder)
    screen = Screen(quiet=not progress)
    if fork and resume_from:
        raise Refused("resume_from goes back in a run, and fork starts another: give one of them.")
    if epochs:
        experiment = with_epochs(experiment, epochs)
    trained = trainer.train(
        experiment, folder, screen, fork=fork, adopt=adopt, resume_from=str(resume_from)
    )
    for number in trained.signals:
        signal.raise_signal(number)
    return make_run(folder, trained.program, trained.state, trained.summary["step"])


def restore(
    directory: str | Path,
    *,
    step: int | str = "last",
    experiment: Experiment | None = None,
    for_training: bool = True,
) -> Run:
    """A run as it was at one of its checkpoints; nothing is trained, and no data is read.

    The run's mesh is used if it fits the devices that are here, else all of them hold a copy. What
    its data has learned, such as the names of classes, is read from the folder.

    Args:
      directory: the run's folder; it is not changed.
      step: last, best, or the step of a checkpoint.
      experiment: what was trained. It is needed where classes in it are not jaxbig's: nothing that
        a folder names is imported.
      for_training: False: what a prediction needs alone, so that the state has no `step` and no
        `opt_state`, which take most of the memory.

    Raises:
      Refused: there is no such run or checkpoint, or the experiment is of another run.
      Failed: no checkpoint is good.
    """
    folder = Path(directory)
    refuse_url("directory", folder)
    described = read_run(folder)
    if described is None:
        raise Refused(f"{folder} holds no run: there is no file run.json.")
    if experiment is None:
        try:
            experiment = from_run(described, callbacks=False)
        except Refused as error:
            raise Refused(
                f"the experiment of {folder} cannot be rebuilt from its run.json: {error}; give it "
                f"as restore({str(folder)!r}, experiment=...)."
            ) from None
    check_experiment(experiment)
    experiment = fitting(with_kept(experiment, folder))
    if lines := differences(described, of_shapes(experiment)):
        raise Refused(f"{folder} holds a run of another experiment ({'; '.join(lines)}).")
    checkpoints = trainer.open_checkpoints(experiment, folder)
    steps = checkpoints.choose(str(step))
    if not steps:
        raise Refused(f"{folder} holds no checkpoint: train first.")
    program = make_program(experiment)
    use_compilation_cache()
    with program.activate():
        if for_training:
            restored = checkpoints.restore(program.abstract, as_saved, steps=steps)
            state = as_asked(restored.state, program.abstract)
        else:
            fields = ("params", "variables")
            wanted = {name: getattr(program.abstract, name) for name in fields}
            restored = checkpoints.restore(wanted, only=fields, steps=steps)
            state = TrainState(step=None, opt_state=None, **restored.state)
    return make_run(folder, program, state, restored.step)


def evaluate(run: Run | str | Path, *, split: str = "eval") -> dict[str, float]:
    """The objective's metrics over a split of the run's data, each example once.

    Args:
      run: a run, or the folder of one, whose last checkpoint is taken.
      split: eval, train, or test where the data has such a split. The data transforms all as it
        does for an evaluation.

    Raises:
      Refused: the data is not what the run was trained with, or has no such split.
    """
    if not isinstance(run, Run):
        run = restore(run)
    source = open_run_split(run, split)
    with run.program.activate():
        metrics = passes.evaluate(run.program, run.state, source)
    assert metrics is not None, "nothing asks it to stop"
    return metrics


def open_run_split(run: Run, split: str) -> Source:
    """The examples of a split of a run's data; raises as `evaluate`."""
    experiment = with_kept(run.experiment, run.directory)  # preparing changes this copy alone
    identity = prepare(experiment)
    described = read_run(run.directory)
    if described and (lines := differences(described, {"data_identity": identity})):
        raise Refused(f"{run.directory} was trained with other data ({'; '.join(lines)}).")
    with run.program.activate():
        return open_split(experiment.data, split)


def begin_run(program: Program, folder: Path, state: TrainState, *, fixed: dict[str, Any]) -> None:
    """Writes a run that is at step 0: `run.json` and a checkpoint.

    Args:
      program: of the run.
      folder: an empty folder.
      state: before the first step.
      fixed: the run's identity.
    """
    checkpoints = trainer.open_checkpoints(program.experiment, folder)
    checkpoints.save(0, state, {})
    checkpoints.wait()
    checkpoints.close()
    weights = Restored(0, {}, digests(weights_of(state))[1])
    write_run(program, folder, run=None, fixed=fixed, weights=weights)


def make_run(folder: Path, program: Program, state: TrainState, step: int) -> Run:
    """The run in a folder, with its metrics."""
    history = read_metrics(folder)
    return Run(
        directory=folder,
        experiment=program.experiment,
        step=step,
        state=state,
        metrics=last_metrics([row for row in history if row["step"] <= step]),
        history=history,
        program=program,
    )


def check_experiment(experiment: Any) -> None:
    """Raises if this is no experiment, such as its name."""
    if not isinstance(experiment, Experiment):
        raise TypeError(
            f"{experiment!r} is no Experiment: give what jb.load(NAME) returns, or an Experiment."
        )


def with_kept(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with data that knows what the run in a folder has learned from its own."""
    return experiment.replace(data=experiment.data.with_kept(folder))


def fitting(experiment: Experiment) -> Experiment:
    """The experiment on its mesh, or on a plain one if that does not fit the devices here."""
    try:
        experiment.mesh.sizes(jax.device_count())
    except Refused:
        return experiment.replace(mesh=Mesh())
    return experiment
