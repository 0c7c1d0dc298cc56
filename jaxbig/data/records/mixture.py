"""Several record sets drawn together, each as often as its weight says, at any moment of a run.

Which part a place of the endless row of examples goes to, the golden ratio's Kronecker sequence decides:
x_n = (n * GOLDEN + offset) mod 2**64 is spread evenly over its range in every window (Weyl, 1916; Niederreiter, 1992),
and a part has an interval of it as long as its weight. How many places before n went to a part is a floor sum, known
without going through them, so a batch is still a function of seed and step alone, and each pass over a part holds each
of its records exactly once.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.core.examples import fetch, where
from jaxbig.data.core.permutation import GOLDEN, permuted, splitmix64
from jaxbig.errors import Refused

RANGE = 2**64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Records):
    """Record sets drawn together; evaluation reads each record of all of them once, part by part.

    Parts that name their classes (`classes`, as folders of images do) may have other ones: a name is one number in the
    whole mixture, its place among all names, sorted. Labels of parts without names are taken as they are.
    """

    parts: tuple[Records, ...]
    """What is drawn from; each is passed over again and again, in an order of its own."""
    weights: tuple[float, ...]
    """How often each part is drawn, relative to the others: 7 2 1 and 0.7 0.2 0.1 are the same. A draw is a record, or,
    where texts are packed, a row: then the weights are shares of the tokens."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of all parts, sorted; () if no part has names."""
        return tuple(sorted({name for part in self.parts for name in named_classes(part)}))

    def fetch(self) -> None:
        for part in self.parts:
            part.fetch()

    def prepare(self) -> str:
        return self.named(self.identities())

    def identities(self) -> list[str]:
        """Makes the parts ready; the identity of each."""
        self.check()
        return [part.prepare() for part in self.parts]

    def named(self, identities: list[str]) -> str:
        """The identity of a mixture of such parts."""
        pairs = zip(self.weights, identities, strict=True)
        return "mixture of " + "; ".join(f"{weight:g} x ({part})" for weight, part in pairs)

    def open(self, split: str) -> "OpenMixture":
        self.check()
        mixed = OpenMixture(
            [relabel(part.open(split), part, self.classes) for part in self.parts], self.weights
        )
        for place, size in enumerate(mixed.sizes):
            if not size:
                raise Refused(
                    f"part {place + 1} of a mixture, {self.parts[place]}, has no record in {split}."
                )
        return mixed

    def check(self) -> None:
        """`Refused` where weights and parts cannot be right."""
        if len(self.parts) != len(self.weights) or not self.parts:
            raise Refused(
                f"a mixture of {len(self.parts)} parts has {len(self.weights)} weights: give each part one."
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise Refused(
                f"a mixture has the weights {self.weights}: each must be above 0; leave a part of 0 out."
            )
        if (
            place := next(
                (i for i, part in enumerate(self.parts) if isinstance(part, Mixture)), None
            )
        ) is not None:
            raise Refused(
                f"part {place + 1} of a mixture is a mixture itself: list its parts in the outer one."
            )
        self.check_classes()

    def check_classes(self) -> None:
        """`Refused` where some parts have other names of classes, and others have numbers alone."""
        names = [named_classes(part) for part in self.parts]
        if not all(names) and len(set(filter(None, names))) > 1:
            raise Refused(
                f"parts of a mixture have other classes ({'; '.join(' '.join(each) for each in names if each)}), and "
                f"part {names.index(()) + 1} has no names of its own, so its numbers could mean any of them: give the "
                f"parts with names the same classes, or leave that part out."
            )


def named_classes(records: Records) -> tuple[str, ...]:
    """The names of the classes of a record set, where it has some."""
    return tuple(getattr(records, "classes", ()))


def relabel(opened: Sequence[Record], part: Records, classes: tuple[str, ...]) -> Sequence[Record]:
    """A part's records with the labels of the whole mixture's classes."""
    own = named_classes(part)
    return (
        opened if own in ((), classes) else Relabeled(opened, [classes.index(name) for name in own])
    )


class Relabeled(Sequence[Record]):
    """Records whose `label` is another number: `numbers[label]`; below 0 it is no class, and stays so."""

    def __init__(self, records: Sequence[Record], numbers: list[int]):
        self.records, self.numbers = records, numbers

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        found = fetch(self.records, list(indices))
        return [
            each if each["label"] < 0 else {**each, "label": self.numbers[each["label"]]}
            for each in found
        ]

    def where(self, index: int) -> str:
        return where(self.records, index)


class OpenMixture(Sequence[Record]):
    """The opened records of a mixture: those of its parts, one part after another."""

    def __init__(self, parts: Sequence[Sequence[Record]], weights: Sequence[float]):
        self.parts, self.sizes = list(parts), [len(part) for part in parts]
        self.begins = np.cumsum([0, *self.sizes])
        shares = [Fraction(weight) for weight in weights]
        ends = itertools.accumulate(shares)
        self.bounds = [
            0,
            *(int(RANGE * end / sum(shares)) for end in ends),
        ]  # of the parts' intervals, in 0 .. 2**64

    def __len__(self) -> int:
        return int(self.begins[-1])

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Those records, read from each part at once where it can be."""
        found: list[Record] = [{}] * len(indices)
        owners = self.owners(np.asarray(indices))
        for part in np.unique(owners).tolist():
            places = np.flatnonzero(owners == part).tolist()
            own = [int(indices[place] - self.begins[part]) for place in places]
            for place, record in zip(places, fetch(self.parts[part], own), strict=True):
                found[place] = record
        return found

    def where(self, index: int) -> str:
        """What names a record, as its part does."""
        part = int(self.owners(np.asarray([index]))[0])
        return f"{where(self.parts[part], int(index - self.begins[part]))} of part {part + 1}"

    def owners(self, indices: np.ndarray) -> np.ndarray:
        """The part that each record [N] is in."""
        return np.searchsorted(self.begins, indices, side="right") - 1

    def draw(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """The records at consecutive positions [N] of the endless row of examples."""
        first, offset = int(positions[0]), int(splitmix64(np.array([seed], np.uint64))[0])
        spread = positions.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(offset)
        owners = np.searchsorted(np.array(self.bounds[1:-1], np.uint64), spread, side="right")
        before = [below(first, offset, bound) for bound in self.bounds]
        indices = np.empty(len(positions), np.int64)
        for part in np.unique(owners).tolist():
            places = np.flatnonzero(owners == part)
            ranks = before[part + 1] - before[part] + np.arange(len(places))
            epochs, ranks = np.divmod(ranks, self.sizes[part])
            own = seed + (part + 1) * 2**32  # seeds are below 2**32: no two parts have one order
            indices[places] = self.begins[part] + permuted(ranks, self.sizes[part], own, epochs)
        return indices


def below(count: int, offset: int, bound: int) -> int:
    """How many of x_0 .. x_(count - 1) are below the bound, 0 <= bound <= 2**64: of a number y = q * 2**64 + x,
    floor(y / 2**64) - floor((y - bound) / 2**64) is 1 if x is and 0 if not."""
    shifted = floor_sum(count, RANGE, GOLDEN, offset + RANGE - bound) - count
    return floor_sum(count, RANGE, GOLDEN, offset) - shifted


def floor_sum(count: int, divisor: int, slope: int, start: int) -> int:
    """The sum of floor((slope * i + start) / divisor) for i = 0 .. count - 1, all of them 0 or more, in O(log divisor)
    steps: whole parts are taken off, then the lattice points below the line are counted by columns instead of rows, as
    in Euclid's algorithm (Graham, Knuth & Patashnik, Concrete Mathematics, 3.5)."""
    total = 0
    while count:
        total += slope // divisor * (count * (count - 1) // 2) + start // divisor * count
        slope, start = slope % divisor, start % divisor
        top = slope * count + start
        count, start, slope, divisor = top // divisor, top % divisor, divisor, slope
    return total
