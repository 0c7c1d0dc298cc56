"""The base class of callbacks: code of the user's that a run calls."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Callback:
    """Called at each step, evaluation and save of a run; by default it does nothing.

    A callback sees a run and does not change it: with other callbacks it gives the same numbers,
    and resumes. Its fields are options, like those of a model. A field that is declared with
    `init=False` is no option, but holds what the callback collects.

    Every process of a run calls its callbacks; `jax.process_index() == 0` is true on one. An error
    in one ends the run, as any error does.
    """

    def start(self, step: int, state: Any) -> None:
        """Called before the first step, and again after a rollback.

        Args:
          step: the number of steps made before; 0 unless the run resumes.
          state: the `TrainState` after that step.
        """

    def after_step(self, step: int, metrics: Mapping[str, Any], state: Any) -> None:
        """Called after each step, but not for a batch that a rollback has left out.

        Args:
          step: the number of the step, from 1.
          metrics: scalars that may still be computed on the devices. To read one waits for the
            step, which costs speed: read them every so often.
          state: the `TrainState` after the step. The next step overwrites its arrays, so copy what
            is to be kept.
        """

    def after_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called after each evaluation.

        Args:
          step: the number of steps made.
          metrics: the objective's metrics over the evaluation split.
        """

    def after_save(self, step: int, directory: Path) -> None:
        """Called when a checkpoint is complete on disk, perhaps some steps after the save started.

        Args:
          step: the step that was saved.
          directory: the checkpoint's folder. A later save may remove it.
        """

    def end(self, step: int) -> None:
        """Called when the run ends, by an error or before a rollback too.

        Args:
          step: the last step that was made.
        """
