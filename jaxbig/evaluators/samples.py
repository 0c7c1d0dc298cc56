"""The evaluator of images that a diffusion model samples: a picture, and a classifier's judgement.

Letters in shape comments: N examples, M samples, Y and X height and width, C channels, D features,
K classes.
"""

import dataclasses
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxbig.config.evaluator import Evaluator
from jaxbig.constraints import PositiveInt
from jaxbig.data.core.array_source import ArraySource
from jaxbig.data.core.dataset import Source
from jaxbig.errors import Refused
from jaxbig.inference.outputs import as_image
from jaxbig.train.passes import Evaluation, evenly
from jaxbig.train.run import restore

FILE = "samples.png"
ACROSS = 10
"""Samples in a row of the picture, which has at most as many rows."""
LINE = 96
"""Gray level of the line around a sample."""
SIDE = 32
"""Smaller images are enlarged to about this many pixels."""


@dataclasses.dataclass(frozen=True)
class Samples(Evaluator):
    """Draws a sample for each example of a split, of its class.

    The first ten of each class, at most 100, are in `samples.png` in the folder of a run that
    trains. With a classifier there are `recognized`, the share of samples that it takes for what
    was asked, and `frechet`, the distance of their features from those of the split's images: the
    formula of FID, on the classifier's features.
    """

    classifier: str = ""
    """The folder of a classifier's run on the same images, whose best checkpoint judges; empty: a
    picture of at most 100 alone."""
    of: str = "eval"
    """The split whose classes are asked for: train, eval, or test where the data has such a split.
    """
    most: PositiveInt = 10_000
    """The most samples, evenly spread over the split."""

    def standalone(self) -> Self:
        return dataclasses.replace(self, classifier="")

    def check(self, evaluation: Evaluation) -> None:
        if not {"samples", "asked"} <= set(evaluation.prediction_shapes()):
            name = type(evaluation.experiment.objective).__name__
            raise Refused(f"the objective {name} predicts no `samples`, as Diffusion does.")
        evaluation.source(self.of)
        if self.classifier:
            if self.most < 2:
                raise Refused(f"most {self.most}: a distance needs 2 samples or more.")
            self.judge(evaluation)

    def judge(self, evaluation: Evaluation) -> "Judge":
        """Restored once, at the start of a run."""
        folder = self.classifier
        return evaluation.once(f"judge {folder}", lambda: Judge(folder, evaluation))

    def run(self, evaluation: Evaluation, state: Any) -> dict[str, float]:
        if evaluation.folder is None and not self.classifier:
            return {}
        most = self.most if self.classifier else min(self.most, ACROSS**2)
        source = evenly(evaluation.source(self.of), most)
        found = evaluation.predictions(state, source)
        images = found["samples"]
        asked = found["asked"]
        evaluation.picture(FILE, lambda file: draw(images, asked, file))
        if not self.classifier:
            return {}
        return self.judge(evaluation).scores(images, asked, source)


class Judge:
    """A trained classifier, which scores images."""

    def __init__(self, folder: str, evaluation: Evaluation):
        """
        Args:
          folder: of its run.
          evaluation: of the run that draws the images.

        Raises:
          Refused: there is no such run, it has no checkpoint, is no classifier of one class an
            image, sees other images or classes, or has no features [batch, features].
        """
        self._run = restore(folder, step="best", for_training=False)
        self._evaluation = evaluation.of(self._run.program)
        here, there = (
            [
                *({name: list(each.shape[1:]) for name, each in batch.items()}.items()),
                str(batch["inputs"].dtype),
            ]
            for batch in (self._run.program.batch, evaluation.program.batch)
        )
        if here != there:
            raise Refused(f"classifier {folder} sees {here}, and this run {there}: name another.")
        best = self._evaluation.prediction_shapes().get("best")
        if best is None or best.ndim != 1:
            raise Refused(f"classifier {folder} does not predict one class an image: name another.")
        classes = [
            getattr(each.data, "classes", None)
            for each in (self._run.experiment, evaluation.experiment)
        ]
        if classes[0] != classes[1]:
            raise Refused(
                f"classifier {folder} knows {classes[0]} classes, and this run's data has "
                f"{classes[1]}: name another."
            )
        features = self._evaluation.feature_shapes()["features"].shape
        if len(features) != 2:
            raise Refused(f"classifier {folder} has features {list(features)}: name another.")

    def scores(self, images: np.ndarray, asked: np.ndarray, real: Source) -> dict[str, float]:
        """`recognized` and `frechet`.

        Args:
          images: [M, Y, X, C] of 0 to 1.
          asked: the class that each was to be, [M].
          real: examples, whose features are compared with those of the images.
        """
        if not np.isfinite(images).all():
            return {"recognized": np.nan, "frechet": np.nan}
        dtype = self._evaluation.program.batch["inputs"].dtype
        inputs = np.round(255 * images) if dtype == np.uint8 else images
        source = ArraySource(inputs=inputs.astype(dtype), targets=asked.astype(np.int32))
        judge = self._evaluation
        with judge.program.activate():
            seen = judge.predictions(self._run.state, source)["best"]
            features, others = (
                judge.features(self._run.state, each)["features"] for each in (source, real)
            )
        both = (features, others)
        known = all(len(each) > 1 and np.isfinite(each).all() for each in both)
        frechet = judge.on_process_zero(lambda: frechet_distance(*both) if known else np.nan)
        return {"recognized": float(np.mean(seen == asked)), "frechet": frechet}


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """The Frechet distance of two Gaussians with the means and covariances of features (Heusel et
    al., 2017, eq. 6): |m - n|^2 + tr(A + B - 2 (A B)^(1/2)).

    Args:
      features: [M, D].
      others: [N, D].
    """
    one, two = (np.asarray(each, np.float64) for each in (features, others))
    a, b = (np.cov(each, rowvar=False, ddof=1).reshape(each.shape[1], -1) for each in (one, two))
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2)
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    means = np.square(one.mean(axis=0) - two.mean(axis=0)).sum()
    return float(means + np.trace(a) + np.trace(b) - 2 * shared)


def draw(images: np.ndarray, asked: np.ndarray, file: Path) -> None:
    """Writes samples [M, Y, X, C] of 0 to 1 as a PNG, ten in a row: the first ten of each class
    [M], at most 100."""
    first = [np.flatnonzero(asked == number)[:ACROSS] for number in np.unique(asked)]
    tiles = np.round(255 * images[np.concatenate(first)[: ACROSS**2]]).astype(np.uint8)
    tiles = np.broadcast_to(tiles, (*tiles.shape[:3], 3))  # gray or RGB
    tiles = np.pad(tiles, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=LINE)
    blank = np.zeros((-len(tiles) % ACROSS, *tiles.shape[1:]), np.uint8)
    height, width = tiles.shape[1:3]
    rows = np.concatenate([tiles, blank]).reshape(-1, ACROSS, height, width, 3)
    picture = as_image(rows.swapaxes(1, 2).reshape(-1, ACROSS * width, 3))
    times = max(1, SIDE // max(height, width))
    picture.resize((picture.width * times, picture.height * times), 0).save(file)  # 0: nearest
