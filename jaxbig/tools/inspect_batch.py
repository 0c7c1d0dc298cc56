"""What a model will see: the batch of a step as a picture or as text, and what is in it."""

import collections
import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.config.experiment import Experiment
from jaxbig.data.audio import Sounds, Transcripts
from jaxbig.data.core.dataset import Data, Rows, class_name, open_split
from jaxbig.data.pipeline.loader import eval_batch, train_batch
from jaxbig.data.pipeline.sampler import eval_steps
from jaxbig.errors import Refused
from jaxbig.program.gradient import row_keys
from jaxbig.tracking.figures import PLAIN, grid, optional, printable

SHOWN = 25
"""Rows of a batch that are drawn or written at most."""


def inspect(
    experiment: Experiment, step: int, split: str, batches: int, picture: Path
) -> dict[str, Any]:
    """The first result of `look`."""
    return look(experiment, step, split, batches, picture)[0]


def look(
    experiment: Experiment, step: int, split: str, batches: int, picture: Path
) -> tuple[dict[str, Any], Rows]:
    """{`step`, `split`, `examples`, `batch_sha256`, `fields`, `classes`, `padding`, `rows`,
    `picture`} of the batch that the step after `step` takes, as the objective gets it. `classes`
    and `padding` are of `batches` batches from there on; `rows` are its texts, and images are drawn
    into the file `picture`. And the arrays of the first batch, by field."""
    if step < 0 or batches < 1:
        raise Refused(f"--step {step} --batches {batches}: they must be 0 or more, and 1 or more.")
    experiment.data.check()
    data = experiment.data
    source = open_split(data, split)
    if split != "train" and step + batches > (most := eval_steps(source, data.batch)):
        raise Refused(
            f"--step {step} --batches {batches}: an evaluation has {most} batches of {data.batch}."
        )
    digest = ""
    first = {}
    classes = collections.Counter()
    padding = []
    for number in range(step, step + batches):
        read = eval_batch(source, number, batch=data.batch) if split != "train" else None
        rows = (
            train_batch(source, number, seed=experiment.seed, batch=data.batch)
            if read is None
            else read
        )
        if number == step:
            digest = digest_of(rows)
            first = seen(experiment, rows, step, split)
        if rows["mask"].ndim > 1:
            padding.append(1 - float(rows["mask"].mean()))
        if of_classes(data, rows):
            classes.update(rows["targets"][rows["mask"] > 0].tolist())
    draws = first["inputs"].ndim == 4
    drawn = False
    with optional(f"no picture {picture}"):
        if draws:
            draw(first, data, picture)
            drawn = True
    summary = {
        "step": step,
        "split": split,
        "examples": len(source),
        "batch_sha256": digest,
        "fields": [described(name, field) for name, field in first.items()],
        "classes": {class_name(data, number): count for number, count in sorted(classes.items())},
        "padding": float(np.mean(padding)) if padding else None,
        "rows": [] if draws else texts(first, data),
        "picture": str(picture) if drawn else None,
    }
    return summary, first


def of_classes(data: Data, rows: Rows) -> bool:
    """Whether the targets of a batch are a class for each place that counts: of a row, or of a
    pixel."""
    targets = rows.get("targets", np.empty(0))
    there = getattr(data, "classes", None) is not None and np.issubdtype(targets.dtype, np.integer)
    return there and targets.shape == rows["mask"].shape


def digest_of(rows: Rows) -> str:
    """The sha256 over a batch's bytes, fields in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(
            f"{name} {rows[name].dtype} {rows[name].shape}".encode() + rows[name].tobytes()
        )
    return digest.hexdigest()


def seen(experiment: Experiment, rows: Rows, step: int, split: str) -> Rows:
    """The batch as the objective gets it at a step of training, or in evaluation."""
    train = split == "train"
    places = jnp.arange(experiment.data.batch)
    keys = row_keys(experiment, "augment" if train else "evaluation", step if train else 0, places)
    batch = jax.jit(lambda rows, keys: experiment.data.transform(rows, keys, train))(rows, keys)
    return {name: np.asarray(field) for name, field in batch.items()}


def described(name: str, field: np.ndarray) -> dict[str, Any]:
    """A row of the table of fields."""
    numbers = {"least": field.min(), "mean": field.mean(dtype=np.float64), "greatest": field.max()}
    shape = " x ".join(map(str, field.shape))
    return {
        "field": name,
        "shape": shape,
        "dtype": str(field.dtype),
        **{k: float(v) for k, v in numbers.items()},
    }


def texts(batch: Rows, data: Data) -> list[dict[str, Any]]:
    """The first rows: tokens as text, numbers as they are; what the mask leaves out is left out.

    Of rows that are learned in part also `parts`, as of `learned_parts`.
    """
    shown = []
    for row in range(min(SHOWN, len(batch["mask"]))):
        fields = {name: batch[name][row] for name in ("inputs", "targets") if name in batch}
        if "lengths" in batch:
            fields["inputs"] = fields["inputs"][: int(batch["lengths"][row])]
        if batch["mask"].ndim > 1 and "targets" in fields:
            fields["targets"] = fields["targets"][batch["mask"][row] > 0]
        shown.append({name: format_field(name, field, data) for name, field in fields.items()})
        if parts := learned_parts(batch, row, data):
            shown[-1]["parts"] = parts
    return shown


def learned_parts(batch: Rows, row: int, data: Data) -> list[tuple[str, bool]]:
    """The text of a row in parts, and whether each is learned; none if all of it is."""
    mask = batch["mask"][row] > 0
    if mask.ndim != 1 or "targets" not in batch or batch["targets"][row].shape != mask.shape:
        return []
    end = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0
    if mask[:end].all():
        return []
    edges = [0, *(np.flatnonzero(np.diff(mask[:end])) + 1).tolist(), end]
    pairs = itertools.pairwise(edges)
    tokens = batch["targets"][row]
    return [(data.text(tokens[start:stop]), bool(mask[start])) for start, stop in pairs]


def format_field(name: str, field: np.ndarray, data: Data) -> str:
    if name == "targets" and field.ndim == 0 and getattr(data, "classes", None) is not None:
        return class_name(data, int(field))
    if field.ndim == 1 and np.issubdtype(field.dtype, np.integer):
        return data.text(field)
    return np.array2string(field, precision=3, threshold=8)


def draw(batch: Rows, data: Data, file: Path) -> None:
    """The first images of a batch in a grid, each under its class, or beside its mask where each
    pixel has a class, or with its boxes; those that are not of 0 to 1 are drawn from least to
    greatest.

    A spectrogram is drawn upright: time across, the lowest band at the bottom.
    """
    from matplotlib.patches import Rectangle  # here: slow to import

    images = drawable(batch["inputs"][:SHOWN])
    upright = isinstance(data, Sounds | Transcripts)
    if upright:
        images = images.swapaxes(1, 2)  # [B, bands, frames, 1]
    targets = batch.get("targets", np.empty((SHOWN, 0)))[:SHOWN]
    masks = targets.shape[1:] == images.shape[1:3]
    across = math.ceil(len(images) ** 0.5) * (2 if masks else 1)
    panels = [
        panel
        for image, target in zip(images, targets, strict=False)
        for panel in [image, target][: 1 + masks]
    ]
    figure, places = grid(len(panels), across, width=1.8, height=2)
    for place, (panel, axes) in enumerate(zip(panels, places, strict=True)):
        if panel.ndim == 2:
            axes.imshow(
                panel,
                vmin=targets.min(),
                vmax=max(targets.max(), targets.min() + 1),
                interpolation="nearest",
            )
        else:
            axes.imshow(
                panel[..., 0] if panel.shape[-1] == 1 else panel,
                cmap="magma" if upright else "gray",
                vmin=0,
                vmax=1,
                origin="lower" if upright else "upper",
                aspect="auto" if upright else "equal",
            )
        target = targets[place // (1 + masks)]
        if "boxes" in batch:
            there = batch["present"][place] > 0
            sides = np.tile(panel.shape[1::-1], 2)  # width and height, twice
            for x, y, width, height in batch["boxes"][place][there] * sides:
                corner = (x - width / 2 - 0.5, y - height / 2 - 0.5)  # pixel 0 is around 0
                axes.add_patch(Rectangle(corner, width, height, fill=False, color="red"))
            names = [class_name(data, int(k)) for k in target[there]]
            axes.set_title(printable(" ".join(names)), fontsize=8, **PLAIN)
        elif not masks:
            axes.set_title(printable(label(target, data)), fontsize=8, **PLAIN)
        axes.axis("off")
    if upright:
        figure.supxlabel("time", fontsize=9)
        figure.supylabel("mel band, the lowest at the bottom", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def drawable(images: np.ndarray) -> np.ndarray:
    """Images [B, Y, X, C] as they are drawn: from 0 to 1; of channels that are no colors the
    mean."""
    if images.shape[-1] not in (1, 3):
        images = images.mean(-1, keepdims=True)
    least = float(images.min())
    greatest = float(images.max())
    if least < 0 or greatest > 1:
        images = (images - least) / ((greatest - least) or 1)
    return images


def label(target: np.ndarray, data: Data) -> str:
    """A class, a text, the two greatest shares of a mixed class, or numbers that are to be
    learned."""
    if isinstance(data, Transcripts):
        return data.text(target)
    if target.ndim == 0 and np.issubdtype(target.dtype, np.integer):
        return class_name(data, int(target))
    if target.ndim > 1:
        return " x ".join(map(str, target.shape))
    if not target.ndim or len(target) != getattr(data, "classes", None):
        return np.array2string(target, precision=3, threshold=4) if target.size else ""
    first, second = np.argsort(-target)[:2].tolist()
    shares = [f"{class_name(data, k)} {target[k]:.0%}" for k in (first, second) if target[k] > 0]
    return class_name(data, first) if len(shares) == 1 else ", ".join(shares)
