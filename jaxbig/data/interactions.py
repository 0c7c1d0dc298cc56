"""Data set of sets of items, such as a basket: which other item belongs to those that are shown.

Letters in shape comments: N items an example at most.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.constraints import PositiveInt, Probability
from jaxbig.data.core.dataset import Batch, Record, Spec
from jaxbig.data.core.examples import Example
from jaxbig.data.core.fields import MismatchError, array, format_value, kind, present
from jaxbig.data.labeled import Labeled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interactions(Labeled):
    """Items that are shown, and one more that belongs to them.

    A batch has the shown items `inputs` [B, most], their number `lengths` [B], and the other item
    `targets` [B]. A record has the items as numbers or names, and the target; an item that it has
    twice counts once. Names are `class_names`, or else those of the targets. In evaluation records
    are taken as they are; in training any of a record's items may be the target, and some of the
    others are not shown.
    """

    most: PositiveInt
    """Items that are shown at most; the later ones of a record are left out."""
    items: str = "items"
    """The record's field with the items that are shown."""
    target: str = "target"
    """The record's field with the item to be found."""
    least_shown: Probability = 0.5
    """In training the share of the other items that is shown is drawn from this to 1."""

    @property
    def label_field(self) -> str:
        return self.target

    @property
    def vocab(self) -> int:
        """How many items there are."""
        return self.classes

    def words(self, tokens: np.ndarray) -> list[str]:
        """The names of items [n]."""
        return [self.class_name(int(item)) for item in tokens]

    def spec(self) -> Spec:
        number = jax.ShapeDtypeStruct((self.batch,), np.int32)
        return {
            "inputs": jax.ShapeDtypeStruct((self.batch, self.most), np.int32),
            "lengths": number,
            "targets": number,
            "mask": jax.ShapeDtypeStruct((self.batch,), np.float32),
        }

    def read(self, record: Record) -> Example:
        example = self.read_unlabeled(record)
        target = self.class_of(record, "--data.target")
        if target in example["inputs"][: example["lengths"]]:
            raise ValueError(f"its target {self.class_name(int(target))} is shown already")
        return example | {"targets": target}

    def read_unlabeled(self, record: Record) -> Example:
        shown = self.shown(record)[: self.most]
        if not shown.size:
            raise ValueError(f"its {self.items!r} are empty: at least one item must be shown")
        inputs = np.zeros(self.most, np.int32)
        inputs[: len(shown)] = shown
        return {
            "inputs": inputs,
            "lengths": np.int32(len(shown)),
            "targets": np.int32(0),
            "mask": np.float32(1),
        }

    def shown(self, record: Record) -> np.ndarray:
        """The items of a record, int32 [n]; raises ValueError if there is no such item."""
        given = array(present(record, self.items, "--data.items"), self.items)
        if given.ndim == 1 and given.dtype.kind in "SUO":
            names = [each.decode() if isinstance(each, bytes) else each for each in given.tolist()]
            known = {name: number for number, name in enumerate(self.names)}
            if unknown := [name for name in names if name not in known]:
                raise MismatchError(
                    f"its {self.items!r} have {format_value(unknown[0])}, which is none of the "
                    f"{len(known)} items: name all of them with --data.class-names, or number them "
                    f"(0, 1, ...)"
                )
            given = np.array([known[name] for name in names], np.int32)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise MismatchError(
                f"its {self.items!r} are {kind(given)} of shape {given.shape}: items must be "
                f"names or integers [n]"
            )
        if given.size and not 0 <= given.min() <= given.max() < self.classes:
            beyond = given.min() if given.min() < 0 else given.max()
            raise MismatchError(
                f"its {self.items!r} have {beyond}, but --data.classes {self.classes} means 0 to "
                f"{self.classes - 1}"
            )
        first = np.unique(given, return_index=True)[1]  # each item once
        return given[np.sort(first)].astype(np.int32)

    def transform(self, batch: Batch, keys: jax.Array, train: bool) -> Batch:
        if not train:
            return batch
        fields = (batch["inputs"], batch["lengths"], batch["targets"])
        inputs, lengths, targets = jax.vmap(self.drawn)(*fields, keys)
        return {**batch, "inputs": inputs, "lengths": lengths, "targets": targets}

    def drawn(
        self, shown: jax.Array, length: jax.Array, target: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Another target of the same items, and some of the others, in any order.

        Args:
          shown: items [N], of which the first `length` count.
          length: their number, a scalar.
          target: the item that belongs to them, a scalar.
          key: a random key.

        Returns:
          The same three: items [N], their number, and the target.
        """
        order, share = jax.random.split(key)
        items = jnp.append(shown, target)  # [N + 1]
        real = jnp.append(jnp.arange(self.most) < length, True)
        places = jnp.argsort(jnp.where(real, jax.random.uniform(order, items.shape), 1))
        items = items[places]
        share = jax.random.uniform(share, minval=self.least_shown)
        count = jnp.ceil(length * share).astype(length.dtype)
        return items[1:], count, items[0]
