"""A metric of your own, over all outputs of an evaluation: the expected calibration error.

Letters in shape comments: N examples, K classes.
"""

import dataclasses

import numpy as np

import jaxbig as jb


@dataclasses.dataclass(frozen=True)
class CalibrationError(jb.objectives.Metric):
    """How far confidence is from accuracy, over bins of confidence (Guo et al., 2017)."""

    bins: int = 10
    """Their number."""

    def result(self, kept: dict[str, np.ndarray]) -> dict[str, float]:
        logits = kept["outputs"] - kept["outputs"].max(axis=-1, keepdims=True)  # [N, K]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        confidence = probabilities.max(axis=-1)
        right = probabilities.argmax(axis=-1) == kept["targets"]
        bins = np.minimum((confidence * self.bins).astype(int), self.bins - 1)
        gaps = [abs((right - confidence)[bins == number].sum()) for number in range(self.bins)]
        return {"calibration_error": float(sum(gaps) / len(right))}


def config() -> jb.Experiment:
    return jb.load("digits_convnet").replace(metrics=(CalibrationError(),), steps=300)


def main() -> None:
    run = jb.fit(config(), "runs/calibrated")
    print(f"calibration error {run.metrics['eval/calibration_error']:.3f}")


if __name__ == "__main__":
    main()
