"""The classification objective: cross-entropy, one class or any labels per example. Pure.

Letters in shape comments: B batch, K classes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import FractionBelowOne, PositiveInt, validate
from jaxbig.errors import Refused
from jaxbig.objectives.base import (
    Batch,
    Found,
    Objective,
    Sum,
    Sums,
    Words,
    as_numbers,
    call,
    check_logits,
    cross_entropy,
    masked,
)

COUNTS = ("true_positives", "predicted", "actual")


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Softmax cross entropy in nats, and accuracy; top-5 accuracy where there are more than 5
    classes.

    With smoothing an evaluation has both: `loss`, which is minimized, and `cross_entropy`, without
    smoothing. Reads `inputs` [B, ...], `targets` [B] (a class number each) or [B, K] (a
    distribution each, as mixup makes; accuracy is then against its largest), `mask` [B], and what
    else the model takes. Targets and mask may have further axes, as for segmentation.
    """

    classes: PositiveInt
    """How many classes the data has."""
    smoothing: FractionBelowOne = 0.0
    """Label smoothing: the share of a target that is spread evenly over the classes (Szegedy et
    al., 2016)."""
    multi_label: bool = False
    """Each class is a yes or no of its own (a sigmoid); targets are [B, K] of 0 and 1, accuracy is
    over the B x K decisions and `exact_match` over examples."""
    class_weights: tuple[float, ...] = ()
    """What each class counts in the loss, a weighted mean; none: each counts 1."""
    macro: bool = False
    """Adds precision, recall, F1 and intersection over union (IoU) in evaluation, each a plain mean
    over all classes (0 where undefined). Of pixels F1 is also called Dice's coefficient."""

    criterion = "accuracy"
    higher_is_better = True

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        validate(self)
        if self.class_weights and len(self.class_weights) != self.classes:
            raise Refused(
                f"class_weights are {len(self.class_weights)} for {self.classes} classes: make "
                f"them equal."
            )
        logits = call(forward, batch, train)
        targets = batch["targets"]
        mask = batch["mask"]
        check_logits(logits, self.classes, "classes")
        spread = targets.ndim == logits.ndim  # targets say something of each class
        if targets.shape not in (
            (logits.shape,) if self.multi_label else (logits.shape[:-1], logits.shape)
        ):
            wanted = logits.shape if self.multi_label else f"{logits.shape[:-1]} or {logits.shape}"
            raise Refused(
                f"targets have the shape {targets.shape} for logits {logits.shape}: it must be "
                f"{wanted}."
            )
        logits = upcast(logits)
        losses, weights = self._losses(logits, targets, spread)
        sums = {"loss": Sum(masked(losses, mask).total, masked(weights, mask).total)}
        if self.smoothing and not train:
            plain, _ = dataclasses.replace(self, smoothing=0.0)._losses(logits, targets, spread)
            sums["cross_entropy"] = Sum(masked(plain, mask).total, sums["loss"].weight)
        if self.multi_label:
            chosen = logits > 0
            actual = targets > 0.5
            right = chosen == actual
            sums["accuracy"] = masked(right, jnp.broadcast_to(mask[..., None], right.shape))
            sums["exact_match"] = masked(jnp.all(right, axis=-1), mask)
        else:
            best = jnp.argmax(logits, axis=-1)
            number = jnp.argmax(targets, axis=-1) if spread else targets
            sums["accuracy"] = masked(best == number, mask)
            if self.classes > 5:
                five = jax.lax.top_k(logits, 5)[1] == number[..., None]
                sums["top5_accuracy"] = masked(jnp.any(five, axis=-1), mask)
            chosen = jax.nn.one_hot(best, self.classes, dtype=bool)
            actual = jax.nn.one_hot(number, self.classes, dtype=bool)
        if self.macro and not train:
            seen = jnp.broadcast_to(mask[..., None] > 0, actual.shape)
            rest = tuple(range(actual.ndim - 1))
            for name, each in zip(COUNTS, (chosen & actual, chosen, actual), strict=True):
                sums[name] = Sum(upcast(jnp.sum(each & seen, axis=rest)), jnp.sum(upcast(mask)))
        return sums

    def _losses(
        self, logits: jax.Array, targets: jax.Array, spread: bool
    ) -> tuple[jax.Array, jax.Array]:
        """[B, K] -> each example's weighted loss [B] and its weight [B].

        A class number weighs as its class, as in PyTorch; a distribution as the mean of its
        classes' weights.
        """
        if not (spread or self.class_weights):
            losses = cross_entropy(logits, targets, self.smoothing)
            return losses, jnp.ones_like(losses)
        weights = jnp.broadcast_to(
            jnp.array(self.class_weights or (1.0,), logits.dtype), logits.shape
        )
        shares = targets.astype(logits.dtype) if spread else jax.nn.one_hot(targets, self.classes)
        smooth = (1 - self.smoothing) * shares + self.smoothing / (
            2 if self.multi_label else self.classes
        )
        if self.multi_label:
            losses = jax.nn.softplus(logits) - smooth * logits
            return jnp.sum(weights * losses, axis=-1), jnp.sum(weights, axis=-1)
        losses = -jnp.sum(weights * smooth * jax.nn.log_softmax(logits), axis=-1)
        return losses, jnp.sum(weights * shares, axis=-1)

    def summarize(self, sums: Sums) -> dict[str, float]:
        metrics = super().summarize(
            {name: each for name, each in sums.items() if name not in COUNTS}
        )
        if COUNTS[0] not in sums:
            return metrics
        right, predicted, actual = (
            np.asarray(sums[name].total, np.float64) for name in COUNTS
        )  # [K] each
        # 0 where undefined
        precision = right / np.maximum(predicted, 1)
        recall = right / np.maximum(actual, 1)
        f1 = 2 * right / np.maximum(predicted + actual, 1)
        iou = right / np.maximum(predicted + actual - right, 1)
        macro = {
            "macro_precision": precision,
            "macro_recall": recall,
            "macro_f1": f1,
            "macro_iou": iou,
        }
        return metrics | {name: float(each.mean()) for name, each in macro.items()}

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """`probabilities` [B, ..., K]; and `best` [B, ...], the likeliest class, or `chosen` [B,
        ..., K], all that are likelier than not."""
        logits = call(forward, batch, train=False)
        check_logits(logits, self.classes, "classes")
        logits = upcast(logits)
        if self.multi_label:
            return {"probabilities": jax.nn.sigmoid(logits), "chosen": logits > 0}
        best = jnp.argmax(logits, axis=-1)
        return {"probabilities": jax.nn.softmax(logits, axis=-1), "best": best}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`class` (`classes` if there may be several), `probability`, `top`, and `target` if known.

        Where each position has a class: `classes` of them, or of the pixels of an image `shares`,
        how much of it each class has, and `picture`, uint8 [Y, X].
        """
        name = words.class_name
        if not self.multi_label and found["best"].ndim:
            return _describe_positions(found, words)
        shares = found["probabilities"]
        listed = [
            {"class": name(int(k)), "probability": as_numbers(shares[k])}
            for k in np.argsort(-shares, kind="stable")[:top]
        ]
        if self.multi_label:
            row = {
                "classes": [name(int(k)) for k in np.flatnonzero(found["chosen"])],
                "top": listed,
            }
            if "targets" in found:
                row["target"] = [name(int(k)) for k in np.flatnonzero(found["targets"] > 0.5)]
            return row
        best = int(found["best"])
        row = {"class": name(best), "probability": as_numbers(shares[best]), "top": listed}
        if "targets" in found:
            target = found["targets"]
            row["target"] = name(int(target.argmax() if target.ndim else target))
        return row


def _describe_positions(found: Found, words: Words) -> dict[str, Any]:
    """The same, where each position of an example has a class."""
    best = found["best"]
    if best.ndim == 1:
        row = {"classes": [words.class_name(int(k)) for k in best]}
        if "targets" in found:
            row["target"] = [words.class_name(int(k)) for k in found["targets"]]
        return row
    kinds, counts = np.unique(best, return_counts=True)
    shares = sorted(zip(-counts / best.size, kinds.tolist(), strict=True))
    row: dict[str, Any] = {
        "shares": [{"class": words.class_name(k), "share": float(-share)} for share, k in shares]
    }
    if "targets" in found:
        right = (best == found["targets"]) & (found["mask"] > 0)
        row["accuracy"] = float(right.sum() / max((found["mask"] > 0).sum(), 1))
    return row | {"picture": best.astype(np.uint8)}
