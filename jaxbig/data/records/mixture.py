"""Records from several record sets, mixed by weights that hold at any moment of a run.

The golden ratio's Kronecker sequence decides which part the n-th sample comes from:
x_n = (n * GOLDEN + offset) mod 2**64 is spread evenly over its range in every window (Weyl, 1916;
Niederreiter, 1992), and each part owns an interval as long as its weight. The number of samples
before n that came from a part is a floor sum, computed without visiting them. So a batch is still a
function of seed and step, and each pass over a part holds each of its records exactly once.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from jaxbig.constraints import NonNegativeInt
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.core.examples import fetch, where
from jaxbig.data.core.permutation import GOLDEN, permuted, splitmix64
from jaxbig.errors import Refused

RANGE = 2**64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of a mixture that hold from a sample on."""

    start: NonNegativeInt
    """The number of the first sample: `data.batch` times the number of its step."""
    weights: tuple[float, ...]
    """Relative frequency of each part from there on; 0: none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Records):
    """A weighted mixture of record sets; evaluation reads every record of each part once.

    Parts that name their classes (`classes`, as folders of images do) may have different ones: in
    the mixture a name's number is its index among all names, sorted. Labels of parts without names
    are not changed.
    """

    parts: tuple[Records, ...]
    """The record sets to mix; each is read again and again, in its own order."""
    weights: tuple[float, ...]
    """Relative frequency of each part: 7 2 1 and 0.7 0.2 0.1 are the same. They count records, or
    rows where texts are packed: then the weights are shares of the tokens."""
    later: tuple[Weights, ...] = ()
    """Other weights later in a run, such as `(Weights(start=64_000, weights=(1, 3)),)`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of all parts, sorted; () if no part has names."""
        return tuple(sorted({name for part in self.parts for name in named_classes(part)}))

    def has_test(self) -> bool:
        return all(part.has_test() for part in self.parts)

    def fetch(self) -> None:
        for part in self.parts:
            part.fetch()

    def prepare(self) -> str:
        return self.named(self.identities())

    def identities(self) -> list[str]:
        """Prepares the parts and returns the identity of each."""
        self.check()
        return [part.prepare() for part in self.parts]

    def named(self, identities: list[str]) -> str:
        """The identity of a mixture of parts with these identities."""
        pairs = zip(self.weights, identities, strict=True)
        later = "".join(
            f"; from {each.start} on {' '.join(f'{weight:g}' for weight in each.weights)}"
            for each in self.later
        )
        return "mixture of " + "; ".join(f"{weight:g} x ({part})" for weight, part in pairs) + later

    def open(self, split: str) -> "OpenMixture":
        self.check()
        mixed = OpenMixture(
            [relabel(part.open(split), part, self.classes) for part in self.parts],
            self.weights,
            self.later,
        )
        for place, size in enumerate(mixed.sizes):
            if not size:
                raise Refused(
                    f"part {place + 1} of a mixture, {self.parts[place]}, has no record in {split}."
                )
        return mixed

    def check(self) -> None:
        """Raises `Refused` if weights and parts are invalid."""
        if len(self.parts) != len(self.weights) or not self.parts:
            raise Refused(
                f"a mixture of {len(self.parts)} parts has {len(self.weights)} weights: give each "
                f"part one."
            )
        if not all(0 < weight < math.inf for weight in self.weights) and not self.later:
            raise Refused(
                f"a mixture has the weights {self.weights}: each must be above 0; leave a part of "
                f"0 out."
            )
        self.check_later()
        for number, part in enumerate(self.parts, 1):
            if isinstance(part, Mixture):
                raise Refused(
                    f"part {number} of a mixture is a mixture itself: list its parts in the outer "
                    f"one."
                )
        self.check_classes()

    def check_later(self) -> None:
        """Raises `Refused` if weights that change in a run are invalid."""
        starts = [0, *(each.start for each in self.later)]
        if starts != sorted(set(starts)):
            raise Refused(
                f"a mixture's later weights start at samples {', '.join(map(str, starts[1:]))}: "
                f"each must be after the one before it, and the first after 0."
            )
        given = [self.weights, *(each.weights for each in self.later)]
        for start, weights in zip(starts, given, strict=True):
            valid = all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0
            if len(weights) != len(self.parts) or not valid:
                raise Refused(
                    f"a mixture of {len(self.parts)} parts has the weights {weights} from sample "
                    f"{start} on: give each part one, 0 or more, and not all of them 0."
                )
        for number, of_part in enumerate(zip(*given, strict=True), 1):
            if not any(of_part):
                raise Refused(
                    f"part {number} of a mixture has a weight of 0 all the time: leave it out."
                )

    def check_classes(self) -> None:
        """Raises `Refused` if parts name different classes and another part has only numbers."""
        names = [named_classes(part) for part in self.parts]
        if not all(names) and len(set(filter(None, names))) > 1:
            listed = "; ".join(" ".join(classes) for classes in names if classes)
            raise Refused(
                f"parts of a mixture have other classes ({listed}), and part {names.index(()) + 1} "
                f"has no names of its own, so its numbers could mean any of them: give the parts "
                f"with names the same classes, or leave that part out."
            )


def named_classes(records: Records) -> tuple[str, ...]:
    """The class names of a record set, or ()."""
    return tuple(getattr(records, "classes", ()))


def relabel(opened: Sequence[Record], part: Records, classes: tuple[str, ...]) -> Sequence[Record]:
    """A part's records with the labels of the mixture's classes."""
    own = named_classes(part)
    return (
        opened if own in ((), classes) else Relabeled(opened, [classes.index(name) for name in own])
    )


class Relabeled(Sequence[Record]):
    """Records with `label` replaced by `numbers[label]`; below 0 it is no class and not changed."""

    def __init__(self, records: Sequence[Record], numbers: list[int]):
        self.records = records
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        return [self.relabel(record) for record in fetch(self.records, list(indices))]

    def relabel(self, record: Record) -> Record:
        label = record["label"]
        return record if label < 0 else {**record, "label": self.numbers[label]}

    def where(self, index: int) -> str:
        return where(self.records, index)


class OpenMixture(Sequence[Record]):
    """The opened records of a mixture: those of its parts, concatenated."""

    def __init__(
        self,
        parts: Sequence[Sequence[Record]],
        weights: Sequence[float],
        later: Sequence[Weights] = (),
    ):
        self.parts = list(parts)
        self.sizes = [len(part) for part in parts]
        self.begins = np.cumsum([0, *self.sizes])
        self.starts = [0, *(each.start for each in later)]
        self.bounds = [intervals(each) for each in (weights, *(each.weights for each in later))]

    def __len__(self) -> int:
        return int(self.begins[-1])

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Reads records, from each part in one call where possible."""
        found: list[Record] = [{}] * len(indices)
        owners = self.owners(np.asarray(indices))
        for part in np.unique(owners).tolist():
            places = np.flatnonzero(owners == part).tolist()
            own = [int(indices[place] - self.begins[part]) for place in places]
            for place, record in zip(places, fetch(self.parts[part], own), strict=True):
                found[place] = record
        return found

    def where(self, index: int) -> str:
        """A record's location, with the number of its part."""
        part = int(self.owners(np.asarray([index]))[0])
        return f"{where(self.parts[part], int(index - self.begins[part]))} of part {part + 1}"

    def owners(self, indices: np.ndarray) -> np.ndarray:
        """The part of each record, [N]."""
        return np.searchsorted(self.begins, indices, side="right") - 1

    def draw(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """The records of consecutive global sample positions, [N]."""
        spans = np.split(positions, np.searchsorted(positions, self.starts[1:]))
        return np.concatenate([self.draw_span(seed, span) for span in spans if len(span)])

    def draw_span(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """The same of positions at which the weights do not change."""
        first = int(positions[0])
        offset = int(splitmix64(np.array([seed], np.uint64))[0])
        bounds = self.bounds[bisect.bisect_right(self.starts, first) - 1]
        # a part that ends the range may be followed by parts of weight 0
        ends = np.array([bound for bound in bounds[1:-1] if bound < RANGE], np.uint64)
        spread = positions.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(offset)
        owners = np.searchsorted(ends, spread, side="right")
        indices = np.empty(len(positions), np.int64)
        for part in np.unique(owners).tolist():
            places = np.flatnonzero(owners == part)
            ranks = self.drawn_before(first, offset, part) + np.arange(len(places))
            epochs, ranks = np.divmod(ranks, self.sizes[part])
            own = seed + (part + 1) * 2**32  # seeds are below 2**32: parts differ in order
            indices[places] = self.begins[part] + permuted(ranks, self.sizes[part], own, epochs)
        return indices

    def drawn_before(self, first: int, offset: int, part: int) -> int:
        """The number of samples before `first` that came from a part."""
        total = 0
        stops = [*self.starts[1:], first]
        for start, stop, bounds in zip(self.starts, stops, self.bounds, strict=True):
            low, high = bounds[part : part + 2]
            for end, sign in ((min(stop, first), 1), (min(start, first), -1)):
                total += sign * (below(end, offset, high) - below(end, offset, low))
        return total


def intervals(weights: Sequence[float]) -> list[int]:
    """The bounds of the parts' intervals, in 0 .. 2**64."""
    shares = [Fraction(weight) for weight in weights]
    ends = itertools.accumulate(shares)
    return [0, *(int(RANGE * end / sum(shares)) for end in ends)]


def below(count: int, offset: int, bound: int) -> int:
    """The number of x_0 .. x_(count - 1) below the bound, 0 <= bound <= 2**64.

    Of y = q * 2**64 + x, floor(y / 2**64) - floor((y - bound) / 2**64) is 1 if x < bound, else 0.
    """
    shifted = floor_sum(count, RANGE, GOLDEN, offset + RANGE - bound) - count
    return floor_sum(count, RANGE, GOLDEN, offset) - shifted


def floor_sum(count: int, divisor: int, slope: int, start: int) -> int:
    """The sum of floor((slope * i + start) / divisor) for i = 0 .. count - 1, in O(log divisor).

    All numbers are 0 or more. Integer parts are taken off, then the lattice points below the line
    are counted by columns instead of rows, as in Euclid's algorithm (Graham, Knuth & Patashnik,
    Concrete Mathematics, 3.5).
    """
    total = 0
    while count:
        total += slope // divisor * (count * (count - 1) // 2) + start // divisor * count
        slope %= divisor
        start %= divisor
        count, start = divmod(slope * count + start, divisor)
        slope, divisor = divisor, slope
    return total
