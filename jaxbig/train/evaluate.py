"""Evaluates a checkpoint of a run; only reads its directory; prepares data if missing."""

import functools
import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jaxbig.config.experiment import Experiment
from jaxbig.config.serialize import flat, to_json
from jaxbig.data.core.dataset import open_split
from jaxbig.distributed.multihost import assert_same_on_all, on_process_zero
from jaxbig.distributed.watchdog import COMPILES, OPENS, PREPARES, Heartbeat, watchdog
from jaxbig.errors import Refused
from jaxbig.objectives.metric import Collector
from jaxbig.program.program import make_program
from jaxbig.program.state import TrainState
from jaxbig.system.compilation_cache import use_compilation_cache
from jaxbig.train.passes import Evaluation, check_evaluators, evaluate, run_evaluator
from jaxbig.train.reference import REFERENCE, give_reference, lost_reference
from jaxbig.train.resume import differences, of_shapes, prepare
from jaxbig.train.run_description import read_run
from jaxbig.train.trainer import open_checkpoints


def evaluate_run(
    experiment: Experiment,
    workdir: Path,
    which: str = "last",
    split: str = "eval",
    *,
    collectors: Collection[Collector] = (),
    evaluators: bool = False,
) -> dict[str, Any]:
    """Evaluates a checkpoint in a directory: the first good one.

    Args:
      experiment: gives the model and the data; those of the run.
      workdir: the run directory.
      which: "last", "best" or the number of a step, as `CheckpointManager.choose` takes it.
      split: "eval" or "test".
      collectors: get the outputs of each batch.
      evaluators: whether to run the experiment's evaluators too.

    Returns:
      `step`, `metrics` and `state_sha256`; with `evaluators` also these, the metrics of each by its
      split.

    Raises:
      Refused: the directory holds no run, no such checkpoint, or another model or data.
    """
    given = {"workdir": str(workdir), "step": which, "split": split}
    assert_same_on_all({**given, **dict(flat(to_json(experiment)))})
    with watchdog(experiment.guard.stuck_after) as heartbeat:
        saved = SavedRun(experiment, workdir, split, which=which, heartbeat=heartbeat)
        if evaluators:
            saved.check_evaluators()
        splits = [split, *(each.evaluator.split for each in experiment.evaluators)]
        step, state_sha256, found = saved.evaluate(
            saved.steps, splits if evaluators else [split], collectors=collectors
        )
    result = {"step": step, "metrics": found.pop(split), "state_sha256": state_sha256}
    return {**result, "evaluators": found} if evaluators else result


class SavedRun:
    """A run in a directory, whose checkpoints are evaluated by the same compiled functions.

    Attributes:
      checkpoints: those in the directory.
      steps: of the checkpoints to evaluate, in order of preference.
    """

    def __init__(
        self, experiment: Experiment, workdir: Path, split: str, *, which: str, heartbeat: Heartbeat
    ):
        """
        Args:
          experiment: gives the model and the data; those of the run.
          workdir: the run directory.
          split: of the data.
          which: as of `evaluate_run`.
          heartbeat: called with (step, activity).

        Raises:
          Refused: as `evaluate_run`.
        """
        heartbeat(0, "reads run.json")
        run = on_process_zero(lambda: read_run(workdir))
        self.checkpoints = open_checkpoints(experiment, workdir, functools.partial(heartbeat, 0))
        if run is None or not on_process_zero(self.checkpoints.steps):
            raise Refused(
                f"{workdir} holds no checkpoint: train first, or name the run's folder with "
                f"--workdir."
            )
        self.steps = self.checkpoints.choose(which)
        heartbeat(0, PREPARES)
        self.program = make_program(experiment)
        use_compilation_cache()
        fixed = of_shapes(experiment)
        data = {"data_identity": prepare(experiment)}
        if lines := differences(run, fixed) or differences(run, data):
            raise Refused(
                f"{workdir} holds a run of another model or data ({'; '.join(lines)}): give the "
                f"options it was trained with, or another --workdir."
            )
        of = data | {REFERENCE: run.get(REFERENCE)}
        if not give_reference(self.program, workdir, of, heartbeat=heartbeat):
            raise lost_reference(workdir)
        heartbeat(0, OPENS)
        self.split = split
        self.source = open_split(experiment.data, split)
        self.step = 0
        self.heartbeat = heartbeat
        self.activities = itertools.chain([COMPILES], itertools.repeat("evaluates"))
        self.evaluation = Evaluation(self.program, heartbeat=self.report_batch)

    def report_batch(self) -> None:
        self.heartbeat(self.step, next(self.activities))

    def check_evaluators(self) -> None:
        """Raises `Refused` if there is no evaluator, or one does not fit the run."""
        if not self.program.experiment.evaluators:
            raise Refused(
                "--evaluators: the experiment has none: give it some, as evaluators=(jb.Every(500, "
                "jb.evaluators.KNearest()),), and name its file here."
            )
        with self.program.activate():
            check_evaluators(self.evaluation)

    def evaluate(
        self, steps: Sequence[int], splits: Sequence[str], *, collectors: Collection[Collector] = ()
    ) -> tuple[int, str, dict[str, dict[str, float]]]:
        """Evaluates the first good checkpoint.

        Args:
          steps: of the checkpoints to try.
          splits: the split of the data, and those of evaluators.
          collectors: get the outputs of each batch.

        Returns:
          Its step, its `state_sha256`, and the metrics by split.
        """
        found: dict[str, dict[str, float]] = {}
        with self.program.activate():
            fields = ("params", "variables")
            wanted = {name: getattr(self.program.abstract, name) for name in fields}
            restored = self.checkpoints.restore(wanted, only=fields, steps=steps)
            assert restored is not None
            self.step = restored.step
            state = TrainState(step=None, opt_state=None, **restored.state)
            if self.split in splits:
                means = evaluate(
                    self.program,
                    state,
                    self.source,
                    heartbeat=self.report_batch,
                    collectors=collectors,
                )
                assert means is not None, "nothing asks it to stop"
                found[self.split] = means
            for each in self.program.experiment.evaluators:
                if each.evaluator.split in splits:
                    self.heartbeat(self.step, COMPILES)
                    values = run_evaluator(each.evaluator, self.evaluation, state)
                    found[each.evaluator.split] = values
        return restored.step, restored.state_sha256, found
