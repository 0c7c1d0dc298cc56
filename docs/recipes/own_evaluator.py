"""An evaluator of your own: how many answers change if the pictures are shifted by a pixel."""

import dataclasses
from typing import Any

import numpy as np

import jaxbig as jb


@dataclasses.dataclass(frozen=True)
class Shifted:
    """The examples of a source, each shifted to the right."""

    source: Any
    by: int

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = self.source.rows(indices)  # inputs [B, Y, X, C]
        return {**rows, "inputs": np.roll(rows["inputs"], self.by, axis=2)}


@dataclasses.dataclass(frozen=True)
class ShiftedAnswers(jb.Evaluator):
    """The share of examples that the model classifies otherwise when they are shifted."""

    by: int = 1
    """Pixels."""

    def run(self, evaluation: jb.Evaluation, state: Any) -> dict[str, float]:
        source = evaluation.source("eval")
        before = evaluation.outputs(state, source)["outputs"].argmax(axis=-1)
        after = evaluation.outputs(state, Shifted(source, self.by))["outputs"].argmax(axis=-1)
        return {"changed": float(np.mean(before != after))}


def config() -> jb.Experiment:
    return jb.load("digits_convnet").replace(
        evaluators=(jb.Every(50, ShiftedAnswers()),), steps=200
    )


def main() -> None:
    run = jb.fit(config(), "runs/shifted")
    steps, changed = run.curve("shifted_answers/changed")
    print(f"answers that change: {changed[0]:.2f} at step {steps[0]}, {changed[-1]:.2f} at the end")


if __name__ == "__main__":
    main()
