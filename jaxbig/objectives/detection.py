"""The detection objective: a set of objects, each with a class and a box (Carion et al., 2020).

Letters in shape comments: B batch, R layers that answer, Q queries, N objects of an image at most,
K classes.
"""

import colorsys
import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from jaxbig.arrays.dtypes import upcast
from jaxbig.constraints import NonNegativeFloat, PositiveInt, Probability
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
)

ALPHA = 0.25
GAMMA = 2.0
"""Of the focal loss (Lin et al., 2017)."""
WORST = 1e6
"""Stands for a cost that is no number: matching would never end."""
PICTURE = 256
"""Pixels of a picture's side at least, where it is a small image, enlarged."""


@dataclasses.dataclass(frozen=True)
class Detection(Objective):
    """Each object is matched to one query, such that the sum of the costs is least (the Hungarian
    algorithm); that query learns its class and its box, every other that there is nothing.

    Classes have the focal loss (Lin et al., 2017), boxes L1 and generalized intersection over union
    (GIoU; Rezatofighi et al., 2019), by default with the weights of Deformable DETR (Zhu et al.,
    2021). The loss is a mean over the objects, where an image without any counts as one, and the
    sum over the layers that answer; `class_loss`, `l1` and `giou` are of the last. The criterion is
    that of the metric `AveragePrecision`, which belongs to the experiment.

    Reads `inputs` [B, ...], `targets` [B, N], `boxes` [B, N, 4], `present` [B, N] and `mask` [B],
    as `Boxes` has them.
    """

    classes: PositiveInt
    """How many classes the data has."""
    class_weight: NonNegativeFloat = 2.0
    """Of the focal loss, and of the class in matching."""
    box_weight: NonNegativeFloat = 5.0
    """Of the L1 distance of boxes, the sum over their four numbers."""
    giou_weight: NonNegativeFloat = 2.0
    """Of 1 - GIoU."""
    least_score: Probability = 0.3
    """Objects that a prediction lists have at least this score."""

    criterion = "ap"
    higher_is_better = True
    criterion_of = "AveragePrecision"
    described = ("inputs", "targets", "boxes", "present", "mask")

    def __call__(self, forward: nn.Module, batch: Batch, key: jax.Array, train: bool) -> Sums:
        sums, count = self._sums(*self._outputs(forward, batch, train), batch)
        return {name: Sum(jnp.sum(each), jnp.sum(count)) for name, each in sums.items()}

    def _sums(
        self, logits: jax.Array, boxes: jax.Array, batch: Batch
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The sums of each image [B] by name, and how many objects it counts as, [B]."""
        mask = upcast(batch["mask"])
        present = upcast(batch["present"]) * mask[:, None]  # [B, N]
        targets = batch["targets"]
        query = matched(jax.lax.stop_gradient(self._costs(logits, boxes, batch)), present)
        # [B, R, Q, K]: the class of the object that a query is matched to
        chosen = jax.nn.one_hot(query, logits.shape[2]) * present[:, None, :, None]  # [B, R, N, Q]
        wanted = jnp.einsum("brnq,bnk->brqk", chosen, jax.nn.one_hot(targets, self.classes))
        focal = focal_loss(logits, wanted)
        focal = jnp.sum(focal, axis=(2, 3)) * mask[:, None]  # [B, R]
        found = jnp.take_along_axis(boxes, query[..., None], axis=2)  # [B, R, N, 4]
        true = jnp.broadcast_to(upcast(batch["boxes"])[:, None], found.shape)
        l1 = jnp.sum(jnp.abs(found - true), axis=-1) * present[:, None]
        overlap = giou(found, true) * present[:, None]  # [B, R, N]
        losses = self.class_weight * focal  # [B, R]
        losses = losses + jnp.sum(
            self.box_weight * l1 + self.giou_weight * (present[:, None] - overlap), axis=2
        )
        sums = {
            "loss": jnp.sum(losses, axis=1),
            "class_loss": focal[:, -1],
            "l1": jnp.sum(l1[:, -1], axis=1),
            "giou": jnp.sum(overlap[:, -1], axis=1),
        }
        return sums, mask * jnp.maximum(jnp.sum(present, axis=1), 1)

    def _outputs(
        self, forward: nn.Module, batch: Batch, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B, R, Q, K] and boxes [B, R, Q, 4] of the model."""
        outputs = cast(Any, call(forward, batch, train))
        check_outputs(outputs)
        logits = upcast(outputs["logits"])
        check_logits(logits, self.classes, "classes")
        if (most := batch["targets"].shape[1]) > logits.shape[2]:
            raise Refused(
                f"the model has {logits.shape[2]} queries for up to {most} objects: give it more, "
                f"or the data fewer."
            )
        return logits, upcast(outputs["boxes"])

    def _costs(self, logits: jax.Array, boxes: jax.Array, batch: Batch) -> jax.Array:
        """What it costs to match each object to each query, [B, R, N, Q]."""
        shape = (*logits.shape[:2], batch["targets"].shape[1], logits.shape[2])
        kinds = jnp.broadcast_to(batch["targets"][:, None, :, None], shape)
        ones = jnp.ones_like(logits)
        gain = focal_loss(logits, ones) - focal_loss(logits, 0 * ones)  # [B, R, Q, K]
        of_class = jnp.take_along_axis(jnp.swapaxes(gain, 2, 3), kinds, axis=2)
        here = jnp.broadcast_to(boxes[:, :, None], (*shape, 4))
        there = jnp.broadcast_to(upcast(batch["boxes"])[:, None, :, None], (*shape, 4))
        return (
            self.class_weight * of_class
            + self.box_weight * jnp.sum(jnp.abs(here - there), axis=-1)
            - self.giou_weight * giou(here, there)
        )

    def predict(
        self, forward: nn.Module, batch: Batch, *, key: jax.Array, top: int
    ) -> dict[str, jax.Array]:
        """The objects with the highest scores first: `scores` [B, top] of 0 to 1, `classes`
        [B, top] and `found` [B, top, 4], their boxes; `losses` [B], means over the objects."""
        logits, boxes = self._outputs(forward, batch, train=False)
        sums, count = self._sums(logits, boxes, batch)
        losses = sums["loss"] / jnp.maximum(count, 1)
        scores = nn.sigmoid(logits[:, -1]).reshape(len(logits), -1)  # [B, Q * K]
        scores, places = jax.lax.top_k(scores, min(top, scores.shape[1]))
        query = places // self.classes
        found = jnp.take_along_axis(boxes[:, -1], query[..., None], axis=1)
        classes = places % self.classes
        return {"scores": scores, "classes": classes, "found": found, "losses": losses}

    def describe(self, found: Found, words: Words, *, top: int) -> dict[str, Any]:
        """`objects`, each with its `class`, `score` and `box` (left, top, right and bottom, as
        fractions of the image); of images uint8 [Y, X, 3] the `picture`, with these boxes; where
        they are known, `targets`, the objects without a score, and `loss`."""
        scores = found["scores"]
        shown = scores >= self.least_score
        boxes = edges(found["found"][shown])
        names = [words.class_name(int(k)) for k in found["classes"][shown]]
        rows = zip(names, scores[shown], boxes, strict=True)
        row: dict[str, Any] = {
            "objects": [
                {"class": name, "score": as_numbers(score), "box": as_numbers(box)}
                for name, score, box in rows
            ]
        }
        if "targets" in found:
            there = found["present"] > 0
            pairs = zip(found["targets"][there], edges(found["boxes"][there]), strict=True)
            row["targets"] = [
                {"class": words.class_name(int(k)), "box": as_numbers(box)} for k, box in pairs
            ]
            row["loss"] = as_numbers(found["losses"])
        image = found["inputs"]
        if image.dtype == np.uint8 and image.shape[-1] == 3:
            row["picture"] = drawn(image, boxes, names)
        return row


def check_outputs(outputs: Any) -> None:
    """`Refused` unless the model gives what `DETR` does."""
    given = outputs if isinstance(outputs, dict) else {}
    if not {"logits", "boxes"} <= set(given):
        raise Refused(
            "detection needs a model that gives `logits` and `boxes`, such as DETR: change one."
        )


def focal_loss(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """The focal loss of each yes or no [...], of 1 and 0 (Lin et al., 2017, eq. 5)."""
    return optax.sigmoid_focal_loss(logits, wanted, alpha=ALPHA, gamma=GAMMA)


def matched(costs: jax.Array, present: jax.Array) -> jax.Array:
    """The query of each object, such that the costs of those that are present are least.

    Args:
      costs: [B, R, N, Q] with N <= Q.
      present: which objects there are, [B, N]; the others get what is left.

    Returns:
      int32 [B, R, N], no number twice in a row.
    """

    def one(costs: jax.Array) -> jax.Array:
        objects, queries = optax.assignment.hungarian_algorithm(costs)
        return jnp.zeros(len(costs), jnp.int32).at[objects].set(queries.astype(jnp.int32))

    costs = jnp.nan_to_num(costs, nan=WORST, posinf=WORST, neginf=-WORST).clip(-WORST, WORST)
    costs = jnp.where(present[:, None, :, None] > 0, costs, 0)  # so they change no other's match
    match_all = jax.vmap(jax.vmap(one))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or not nn.get_logical_axis_rules():
        return match_all(costs)
    # each device loops over its own rows: else all would wait for one another in every round
    rows = nn.logical_to_mesh_axes(("batch",)) or PartitionSpec()
    return jax.shard_map(match_all, in_specs=rows, out_specs=rows, check_vma=False)(costs)


def giou(one: jax.Array, other: jax.Array) -> jax.Array:
    """Generalized intersection over union, -1 to 1, of boxes [..., 4] (center x and y, width and
    height) -> [...] (Rezatofighi et al., 2019)."""
    sizes = one[..., 2:], other[..., 2:]  # [..., 2] each
    low = one[..., :2] - sizes[0] / 2, other[..., :2] - sizes[1] / 2
    high = one[..., :2] + sizes[0] / 2, other[..., :2] + sizes[1] / 2
    inner = jnp.minimum(*high) - jnp.maximum(*low)
    shared = jnp.prod(jnp.maximum(inner, 0), axis=-1)
    union = jnp.prod(sizes[0], axis=-1) + jnp.prod(sizes[1], axis=-1) - shared
    hull = jnp.prod(jnp.maximum(*high) - jnp.minimum(*low), axis=-1)
    tiny = 1e-12  # of boxes without an area; its square is a float32 too
    return shared / jnp.maximum(union, tiny) - (hull - union) / jnp.maximum(hull, tiny)


def edges(boxes: np.ndarray) -> np.ndarray:
    """Boxes [..., 4] (center x and y, width and height) as left, top, right and bottom edges."""
    center = boxes[..., :2]
    half = boxes[..., 2:] / 2
    return np.concatenate([center - half, center + half], axis=-1)


def drawn(image: np.ndarray, boxes: np.ndarray, names: list[str]) -> np.ndarray:
    """An image, uint8 [Y, X, 3], with boxes [n, 4] (edges, as fractions) and their names in it, a
    color each; a small one is enlarged."""
    from PIL import Image, ImageDraw  # here: slow to import

    factor = -(-PICTURE // max(image.shape[:2]))
    picture = Image.fromarray(np.repeat(np.repeat(image, factor, axis=0), factor, axis=1))
    pen = ImageDraw.Draw(picture)
    for number, (box, name) in enumerate(zip(boxes, names, strict=True)):
        hue = colorsys.hsv_to_rgb(0.62 * number % 1, 1, 1)  # far from that of the one before
        color = tuple(int(255 * each) for each in hue)
        left, top, right, bottom = (box * np.tile(picture.size, 2)).tolist()
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=2)
        pen.text((left + 4, top + 2), name, fill=color)
    return np.asarray(picture)
