"""Data set of images with objects: a class and a box each (detection).

Letters in shape comments: B batch, N the most objects of an image.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.dataset import Batch, Record, Spec
from jaxbig.data.core.examples import Example, Examples
from jaxbig.data.core.fields import MismatchError, array, class_of, format_value, kind, present
from jaxbig.data.images import image_of, resize_box, to_pillow
from jaxbig.data.records.image_folder import ENDINGS
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.pixels import decoding

ROUNDING = 0.01
"""How far outside of its image a box may be; it is cut there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes(Examples):
    """Images with any number of objects, each with a class and a box.

    A batch has `inputs` [B, size, size, 3] in [0, 1]; the objects' classes `targets` [B, N] and
    `boxes` [B, N, 4], center x and y, width and height as fractions of the image; `present` [B, N],
    1 where there is an object; `crowd` [B, N], 1 for a box around many objects, which is not
    learned; and `mask` [B]. Images are stretched to the square.

    A record has `image`, and boxes [n, 4] (top, left, bottom and right edges, as fractions of the
    image) with a label each: in `boxes` and `labels`, or in a field of their own as TFDS has them,
    `objects` with `bbox`, `label` and `is_crowd`.
    """

    size: PositiveInt
    """Height and width of the model's input, in pixels."""
    classes: PositiveInt
    """Number of classes."""
    objects: PositiveInt
    """N, the most objects of an image; a record with more is refused."""
    group: str = ""
    """The record's field that has the following three in it, such as objects; none: the record."""
    boxes_feature: str = "boxes"
    """The field with the boxes."""
    labels_feature: str = "labels"
    """The field with a class for each box, by number or by name."""
    crowd_feature: str = ""
    """The field that says which boxes are around many objects; none: no box is."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in order."""
    flip: bool = False
    """Randomly flip half of the images left to right in training."""

    endings = ENDINGS

    @property
    def names(self) -> tuple[str, ...]:
        return self.class_names

    def record_of_file(self, content: bytes) -> Record:
        return {"image": content}

    def spec(self) -> Spec:
        shape = (self.batch, self.objects)
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, self.size, self.size, 3), np.uint8),
            "targets": jax.ShapeDtypeStruct(shape, np.int32),
            "boxes": jax.ShapeDtypeStruct((*shape, 4), np.float32),
            "present": jax.ShapeDtypeStruct(shape, np.float32),
            "crowd": jax.ShapeDtypeStruct(shape, np.float32),
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Example:
        with decoding():
            picture = to_pillow(image_of(record))
            inputs = resize_box(picture, (self.size, self.size), (0, 0, *picture.size), 3)
        found: Record = present(record, self.group, "--data.group") if self.group else record
        if not isinstance(found, Mapping):
            raise MismatchError(
                f"its {self.group!r} is {format_value(found)}: it must have a list for each of "
                f"{self.boxes_feature} and {self.labels_feature}, not a list of objects"
            )
        boxes = edges_of(present(found, self.boxes_feature, "--data.boxes-feature"))
        labels = array(present(found, self.labels_feature, "--data.labels-feature"), "labels")
        if labels.shape != boxes.shape[:1]:
            raise MismatchError(
                f"it has {len(boxes)} box(es), and labels of the shape {labels.shape}: each box "
                f"needs one"
            )
        if len(boxes) > self.objects:
            raise MismatchError(
                f"it has {len(boxes)} objects, and --data.objects {self.objects} are the most: set "
                f"more"
            )
        name = self.labels_feature
        classes = [
            class_of({name: each}, name, self.classes, "--data.labels-feature", self.class_names)
            for each in labels
        ]
        crowd = np.zeros(len(boxes), bool)
        if self.crowd_feature:
            crowd = array(present(found, self.crowd_feature, "--data.crowd-feature"), "crowd")
            if crowd.shape != boxes.shape[:1] or crowd.dtype.kind not in "biuf":
                raise MismatchError(
                    f"its {self.crowd_feature!r} are {kind(crowd)} of the shape {crowd.shape}, and "
                    f"it has {len(boxes)} box(es): each box needs a 0 or 1"
                )
            crowd = crowd > 0
        start = boxes[:, :2]
        end = boxes[:, 2:]
        centered = np.concatenate([(start + end)[:, ::-1] / 2, (end - start)[:, ::-1]], axis=1)

        def padded(values: Any, dtype: Any, *shape: int) -> np.ndarray:
            out = np.zeros((self.objects, *shape), dtype)
            out[: len(boxes)] = np.reshape(values, (-1, *shape))
            return out

        return {
            "inputs": inputs,
            "targets": padded(classes, np.int32),
            "boxes": padded(centered, np.float32, 4),
            "present": padded(~crowd, np.float32),
            "crowd": padded(crowd, np.float32),
            "mask": np.float32(1),
        }

    def read_unlabeled(self, record: Record) -> Example:
        names = (self.boxes_feature, self.labels_feature, self.crowd_feature)
        none: Record = {name: np.zeros((0, 4)) if name == names[0] else [] for name in names}
        found = none | (record.get(self.group) or {} if self.group else record)
        return self.read({**record, self.group: found} if self.group else found)

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        images = batch["inputs"].astype(jnp.float32) / 255
        boxes = batch["boxes"]
        if train and self.flip:
            coins = jax.vmap(jax.random.bernoulli)(keys)  # [B]
            flipped = boxes.at[..., 0].set(1 - boxes[..., 0])
            images = jnp.where(coins[:, None, None, None], jnp.flip(images, axis=2), images)
            boxes = jnp.where(coins[:, None, None], flipped, boxes)
        return {**batch, "inputs": images, "boxes": boxes}

    def smaller(self, side: int) -> Self:
        """Smaller images."""
        return dataclasses.replace(self, size=min(self.size, side))

    def synthetic(self) -> "Boxes":
        """The same data set with synthetic records."""
        features = {"group": "", "crowd_feature": "", "class_names": ()}
        most = min(3, self.objects)
        objects = ((self.boxes_feature, self.labels_feature, self.classes, most),)
        records = Synthetic(images=("image",), objects=objects)
        return dataclasses.replace(self, records=records, **features)


def edges_of(value: Any) -> np.ndarray:
    """A record's boxes, [n, 4]: top, left, bottom and right edges, cut to the image.

    Raises:
      MismatchError: they are no boxes.
    """
    boxes = array(value, "boxes")
    if not boxes.size:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        raise MismatchError(
            f"its boxes are {kind(boxes)} of the shape {boxes.shape}: they must be numbers [n, 4]"
        )
    boxes = boxes.astype(np.float64)
    for number, box in enumerate(boxes):
        text = f"its box {number} is {' '.join(f'{edge:g}' for edge in box)}"
        if not np.isfinite(box).all():
            raise MismatchError(f"{text}: each edge must be a number")
        if box.min() < -ROUNDING or box.max() > 1 + ROUNDING:
            raise MismatchError(
                f"{text}: edges are fractions of the image, 0 to 1; divide pixels by its height "
                f"and width"
            )
        if box[0] > box[2] or box[1] > box[3]:
            raise MismatchError(
                f"{text}: top must be above bottom, and left before right, in this order: top, "
                f"left, bottom, right"
            )
    return boxes.clip(0, 1)
