"""How far a run's metrics fall as its inputs get worse: corruptions, typos, attacks.

Corruptions and typos are those of data/transforms/corruptions.py. Attacks change each image by at
most a radius, so that the loss rises: FGSM (Goodfellow et al., 2015) and PGD (Madry et al., 2018).
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import upcast
from jaxbig.data.core.dataset import Data, Record, Records, Rows, Source, open_split
from jaxbig.data.text import Pairs, Sentences, Text
from jaxbig.data.transforms import corruptions
from jaxbig.data.transforms.pixels import as_shares
from jaxbig.distributed.multihost import refuse_several
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.dual_encoder import DualEncoder
from jaxbig.program.program import Program, make_eval_step
from jaxbig.tracking.figures import grid
from jaxbig.train.passes import evaluate, limited
from jaxbig.train.run import Run, open_run_split

INPUTS = ("inputs", "lengths")
"""What typos change."""
PGD_STEPS = 10
"""Steps of PGD, each of a quarter of the radius."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A way to make inputs worse."""

    unit: str
    """Of its strengths."""
    strengths: tuple[float, ...]
    corrupt: Callable[[Any, float, np.random.Generator], Any] | None = None
    """`(image or text, strength, random) -> the same, worse`."""
    steps: int = 0
    """Of an attack."""


LEVELS = (1.0, 2.0, 4.0, 8.0, 16.0)
CHANGES = {
    "noise": Change("standard deviation", (0.02, 0.04, 0.08, 0.16, 0.32), corruptions.noise),
    "blur": Change("pixels", (0.25, 0.5, 1.0, 2.0, 4.0), corruptions.blur),
    "contrast": Change("share lost", (0.2, 0.4, 0.6, 0.8, 0.9), corruptions.contrast),
    "jpeg": Change("100 - quality", (20.0, 60.0, 80.0, 90.0, 95.0), corruptions.jpeg),
    "fgsm": Change("of 255 levels", LEVELS, steps=1),
    "pgd": Change("of 255 levels", LEVELS, steps=PGD_STEPS),
    "typos": Change("share of letters", (0.01, 0.02, 0.05, 0.1, 0.2), corruptions.typos),
}
"""All changes by name: `typos` of texts, the others of images."""


def stress(
    run: Run,
    *,
    changes: Sequence[str] = (),
    split: str = "eval",
    batches: int | None = None,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Evaluates a run on inputs that are worse and worse.

    Args:
      run: what is evaluated.
      changes: names of `CHANGES`; none: all that fit the run's data.
      split: of its data.
      batches: only the first ones; None: every example once.
      seed: of noise, typos and the first step of PGD; each example draws for itself.

    Yields:
      `change`, `strength`, `unit` and `metrics`; first those of the inputs as they are, whose
      `change` is "none".

    Raises:
      Refused: the data is neither images of 0 to 1 nor texts, or a name is unknown.
    """
    refuse_several("stress")
    names = check_changes(run, changes)
    for name, number in (("batches", batches or 0), ("seed", seed)):
        if number < 0:
            raise Refused(f"--{name} {number}: it must be 0 or more.")
    source = open_run_split(run, split)
    # read by this thread, which the devices' mesh is active in
    experiment = run.program.experiment.replace(reader_threads=0, workers=0)
    program = limited(dataclasses.replace(run.program, experiment=experiment), batches)

    def metrics(of: Source) -> dict[str, float]:
        with program.activate():
            found = evaluate(program, run.state, of)
        assert found is not None, "nothing asks it to stop"
        return found

    yield {"change": "none", "strength": 0.0, "unit": "", "metrics": metrics(source)}
    for name in names:
        change = CHANGES[name]
        attack = None
        if change.steps:
            with program.activate():
                state: Any = program.merged(run.state)
            attack = make_attack(program, state, change.steps)
        for strength in change.strengths:
            if name == "typos" and isinstance(run.experiment.data, Sentences | Pairs):
                of = mistyped(run, split, strength, seed=seed)
            elif name == "typos":
                of = Retyped(source, run.experiment.data, strength, seed=seed)
            else:
                of = Changed(source, change, strength, seed=seed, attack=attack)
            yield {
                "change": name,
                "strength": strength,
                "unit": change.unit,
                "metrics": metrics(of),
            }


def check_changes(run: Run, changes: Sequence[str]) -> list[str]:
    """The names of the changes to make; raises as `stress`."""
    unknown = [name for name in changes if name not in CHANGES]
    if unknown:
        raise Refused(f"--changes {unknown[0]}: it must be one of {', '.join(CHANGES)}.")
    data = run.experiment.data
    shape = data.spec()["inputs"].shape if "inputs" in data.spec() else ()
    targets = data.spec().get("targets")
    has_class = targets is not None and len(targets.shape) == 1
    texts = data.reads_texts and not isinstance(data, Text) and {*INPUTS} <= data.spec().keys()
    if isinstance(data, Sentences | Pairs) or (texts and has_class):
        fitting = ["typos"]
    elif len(shape) == 4 and shape[3] in (1, 3):
        attacks = not isinstance(run.experiment.model, DualEncoder)  # whose loss is of all rows
        images = [name for name in CHANGES if name != "typos"]
        fitting = [name for name in images if attacks or not CHANGES[name].steps]
    else:
        raise Refused(
            f"stress changes images, or texts with answers of their own: the inputs of "
            f"{type(data).__name__} are {list(shape[1:])}."
        )
    unfit = [name for name in changes if name not in fitting]
    if unfit:
        raise Refused(
            f"--changes {unfit[0]} does not fit {type(data).__name__}: it takes "
            f"{', '.join(fitting)}."
        )
    return list(changes) or fitting


class Changed:
    """A source whose images are worse."""

    def __init__(
        self,
        source: Source,
        change: Change,
        strength: float,
        *,
        seed: int,
        attack: Callable[..., np.ndarray] | None = None,
    ):
        self.source = source
        self.change = change
        self.strength = strength
        self.seed = seed
        self.attack = attack

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices: np.ndarray) -> Rows:
        rows = self.source.rows(indices)
        images = as_shares(rows["inputs"])
        randoms = [np.random.default_rng([self.seed, index]) for index in indices.tolist()]
        if self.attack is not None:
            drawn = [random.uniform(-1, 1, images.shape[1:]) for random in randoms]
            worse = self.attack(rows, images, np.stack(drawn), self.strength / 255)
        else:
            corrupt = self.change.corrupt
            assert corrupt is not None
            pairs = zip(images, randoms, strict=True)
            worse = np.stack([corrupt(image, self.strength, random) for image, random in pairs])
        if rows["inputs"].dtype == np.uint8:
            worse = np.round(255 * worse)
        return {**rows, "inputs": worse.astype(rows["inputs"].dtype)}


def make_attack(program: Program, state: Any, steps: int) -> Callable[..., np.ndarray]:
    """Returns `(rows, images, drawn, radius) -> images` on which the loss is larger.

    Each pixel stays within the radius, and within 0 and 1. With several steps the first image is
    drawn: `images + radius * drawn`.
    """
    experiment = program.experiment
    levels = 255.0 if program.batch["inputs"].dtype == jnp.uint8 else 1.0

    evaluate_batch = make_eval_step(experiment)

    def loss(images: jax.Array, state: Any, batch: Any) -> jax.Array:
        sums, _ = evaluate_batch(state, {**batch, "inputs": levels * images})
        return upcast(sums["loss"].total)  # of rows that do not see each other

    @jax.jit
    def attack(state: Any, batch: Any, drawn: jax.Array, radius: jax.Array) -> jax.Array:
        clean = batch["inputs"]  # [B, Y, X, C]
        lowest = jnp.maximum(clean - radius, 0)
        highest = jnp.minimum(clean + radius, 1)
        size = radius if steps == 1 else radius / 4

        def step(_: Any, images: jax.Array) -> jax.Array:
            gradient = jax.grad(loss)(images, state, batch)
            return jnp.clip(images + size * jnp.sign(gradient), lowest, highest)

        start = clean if steps == 1 else jnp.clip(clean + radius * drawn, lowest, highest)
        return jax.lax.fori_loop(0, steps, step, start)

    def on_host(rows: Rows, images: np.ndarray, drawn: np.ndarray, radius: float) -> np.ndarray:
        placed = device_put_batch({**rows, "inputs": images, "drawn": drawn}, program.mesh)
        start = placed.pop("drawn")
        with program.activate():
            return np.asarray(attack(state, placed, start, jnp.float32(radius)))

    return on_host


def mistyped(run: Run, split: str, share: float, *, seed: int) -> Source:
    """The examples of a split with typos; of pairs, in their sources."""
    data = copy.copy(run.experiment.data)
    assert isinstance(data, Sentences | Pairs)
    records = Mistyped(records=data.records, field=data.features[0], share=share, seed=seed)
    vars(data)["records"] = records
    return open_split(data, split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistyped(Records):
    """Records with typos in a field."""

    records: Records
    field: str
    share: float
    seed: int

    def open(self, split: str) -> Sequence[Record]:
        return OpenMistyped(self, self.records.open(split))

    def has_test(self) -> bool:
        return self.records.has_test()


class OpenMistyped(Sequence[Record]):
    """The records of a split."""

    def __init__(self, mistyped: Mistyped, records: Sequence[Record]):
        self.mistyped = mistyped
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        record = self.records[index]
        field = self.mistyped.field
        random = np.random.default_rng([self.mistyped.seed, index])
        return {**record, field: corruptions.typos(record[field], self.mistyped.share, random)}


class Retyped:
    """A source of texts with typos, which are read again from the tokens of each."""

    def __init__(self, source: Source, data: Data, share: float, *, seed: int):
        self.source = source
        self.data = data
        self.share = share
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices: np.ndarray) -> Rows:
        rows = self.source.rows(indices)
        pairs = zip(indices.tolist(), rows["inputs"], rows["lengths"], strict=True)
        read = [self.again(index, tokens[:length]) for index, tokens, length in pairs]
        return {**rows, **{name: np.stack([row[name] for row in read]) for name in INPUTS}}

    def again(self, index: int, tokens: np.ndarray) -> Rows:
        """The example of a text, given as tokens [n]; as it is if typos leave nothing of it."""
        random = np.random.default_rng([self.seed, index])
        text = self.data.text(tokens)
        worse = corruptions.typos(text, self.share, random)
        return self.data.read_unlabeled(self.data.record_of_text(worse if worse.strip() else text))


def draw(found: Sequence[dict[str, Any]], metric: str, file: Path) -> None:
    """Draws a metric over the strength of each change.

    Args:
      found: what `stress` yields.
      metric: its name.
      file: PNG to write.
    """
    clean = found[0]["metrics"][metric]
    names = list(dict.fromkeys(each["change"] for each in found[1:]))
    figure, panels = grid(len(names), min(len(names), 3), width=4, height=3)
    lowest = min(each["metrics"][metric] for each in found)
    highest = max(each["metrics"][metric] for each in found)
    room = 0.05 * (highest - lowest) + 1e-9
    for name, axes in zip(names, panels, strict=True):
        rows = [each for each in found if each["change"] == name]
        strengths = [each["strength"] for each in rows]
        axes.axhline(clean, color="gray", linestyle="--", label="unchanged")
        axes.plot(strengths, [each["metrics"][metric] for each in rows], "o-", color="C0")
        axes.set_title(name)
        axes.set_xlabel(rows[0]["unit"])
        axes.set_ylabel(metric)
        axes.set_ylim(lowest - room, highest + room)
        axes.grid(alpha=0.3)
    panels[0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
