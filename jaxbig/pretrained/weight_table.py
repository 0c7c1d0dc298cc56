"""The table of a family: which part of which of their tensors is which part of which of our leaves.

A row is read both ways. It names a leaf of ours, a tensor of theirs, and the axes of both:

    Row("blocks/block_*/attention/key_value/kernel", "h.*.attn.c_attn.weight",
        "d (1 h k) -> d 0 h k")

`*` is a number that both names share, mostly that of a layer; where our layers are scanned, the
leaf of `block` has all of them, stacked. In the axes a name is an axis that both have, parentheses
are axes that are one axis there, and a number is the place along an axis that the other side does
not have: here their tensor has queries, keys and values side by side, and our leaf stacks keys and
values. `#` is a place too: each one along our axis, a number in their name. Without axes both have
the same shape.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Index = tuple[slice, ...]
Slot = tuple[int | slice, ...]
Axes = tuple[tuple[str, ...], ...]
"""The names on each axis, of which several are one axis there."""
BATCH_STATS = "batch_stats/"
"""The start of our name of a leaf that is no parameter."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table."""

    ours: str
    """The path of a leaf, without "params/"; batch statistics start with "batch_stats/"."""
    theirs: str
    """The name of a tensor."""
    axes: str = ""
    """The axes of the tensor, "->", and those of the leaf; empty: they are equal."""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Of axes that are one axis in the leaf, where the leaf's shape does not tell them."""
    skip: int = 0
    """How many entries of the tensor's first axis come before, which no model reads; 0 is written
    there."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A row for one layer: a part of one leaf that is a part of one tensor."""

    leaf: str
    tensor: str
    inner: Axes
    """Of the leaf: a name, or a number where it has a place only."""
    outer: Axes
    """Of the tensor, likewise."""
    sizes: Mapping[str, int]
    """Of each name."""
    skip: int = 0

    @property
    def names(self) -> list[str]:
        """The axes that both have, in the leaf's order."""
        return [name for axis in self.inner for name in axis if not name.isdecimal()]

    @property
    def slot(self) -> Slot:
        """The part of the leaf, with its axes as they are."""
        return tuple(int(axis[0]) if _is_place(axis) else slice(None) for axis in self.inner)

    @property
    def size(self) -> int:
        """Numbers in the part."""
        return math.prod(self.sizes[name] for name in self.names)


def _is_place(axis: Sequence[str]) -> bool:
    return len(axis) == 1 and axis[0].isdecimal()


def parse_axes(text: str) -> Axes:
    """Axes from their text, as (("d",), ("1", "h", "k")) from "d (1 h k)"."""
    found = re.findall(r"\(([^()]*)\)|(\S+)", text)
    return tuple(tuple(group.split()) if group else (single,) for group, single in found)


class Table:
    """The rows of a family for one model, with the shapes of its leaves."""

    def __init__(self, rows: Iterable[Row], leaves: Mapping[str, Shape]):
        """
        Args:
          rows: of the family. A row whose leaf the model does not have counts for nothing.
          leaves: shapes by our name.
        """
        self.leaves = dict(leaves)
        self.parts: list[Part] = [part for row in rows for part in expand(row, self.leaves)]
        self.of_leaf: dict[str, list[Part]] = {}
        self.of_tensor: dict[str, list[Part]] = {}
        for part in self.parts:
            self.of_leaf.setdefault(part.leaf, []).append(part)
            self.of_tensor.setdefault(part.tensor, []).append(part)
        self.shapes = {name: tensor_shape(parts) for name, parts in self.of_tensor.items()}
        """The shape that each of their tensors must have."""
        self.check()

    def check(self) -> None:
        """Raises if the table itself is wrong: each number of both must be in it once."""
        for sizes, found in ((self.leaves, self.of_leaf), (self.shapes, self.of_tensor)):
            for name, parts in found.items():
                covered = sum(part.size for part in parts)
                if found is self.of_tensor and parts[0].skip:
                    covered += parts[0].skip * math.prod(sizes[name][1:])
                if covered != math.prod(sizes[name]) or len(set(map(place, parts))) < len(parts):
                    raise AssertionError(f"{name} of {sizes[name]} is not covered once: {parts}")

    def read(self, leaf: str, index: Index, read: Callable[[str, Index], np.ndarray]) -> np.ndarray:
        """The part of a leaf at `index`, from the parts of tensors that it needs.

        Args:
          leaf: our name.
          index: a slice for each axis.
          read: gives a part of a tensor.
        """
        shape = self.leaves[leaf]
        bounds = [each.indices(size)[:2] for each, size in zip(index, shape, strict=True)]
        out: np.ndarray | None = None
        for part in self.of_leaf[leaf]:
            pairs = list(zip(part.inner, bounds, strict=True))
            places = [(int(axis[0]), at) for axis, at in pairs if _is_place(axis)]
            if not all(start <= number < stop for number, (start, stop) in places):
                continue
            axes = [(axis, at) for axis, at in pairs if not _is_place(axis)]
            value = self._read_part(part, {a[0]: at for a, at in axes if len(a) == 1}, read)
            if any(len(axis) > 1 for axis, _ in axes):  # of such an axis all was read
                sizes = dict(zip(part.names, value.shape, strict=True))
                value = value.reshape([math.prod(sizes[n] for n in axis) for axis, _ in axes])
                value = value[tuple(slice(*at) if len(a) > 1 else slice(None) for a, at in axes)]
            if out is None:
                out = np.empty([stop - start for start, stop in bounds], value.dtype)
            out[
                tuple(
                    int(axis[0]) - start if _is_place(axis) else slice(None)
                    for axis, (start, _) in pairs
                )
            ] = value
        assert out is not None, leaf
        return out

    def _read_part(
        self,
        part: Part,
        wanted: Mapping[str, tuple[int, int]],
        read: Callable[[str, Index], np.ndarray],
    ) -> np.ndarray:
        """A part of a tensor, [each of `part.names`], with the entries in `wanted` only."""
        index = []
        shape = []
        after = []
        for number, axis in enumerate(part.outer):
            counts = self._counts(part, axis, number)
            ranges = [
                (int(name), int(name) + 1) if name.isdecimal() else wanted.get(name, (0, count))
                for name, count in zip(axis, counts, strict=True)
            ]
            bounds, sizes, rest = narrow(counts, ranges)
            skip = 0 if number else part.skip
            index.append(slice(bounds.start + skip, bounds.stop + skip))
            shape += sizes
            after += rest
        value = read(part.tensor, tuple(index)).reshape(shape)[tuple(after)]
        names = [name for axis in part.outer for name in axis]
        value = value[tuple(0 if name.isdecimal() else slice(None) for name in names)]
        named = [name for name in names if not name.isdecimal()]
        return value.transpose([named.index(name) for name in part.names])

    def _counts(self, part: Part, axis: Sequence[str], number: int) -> list[int]:
        """The size of each name on an axis of a tensor; of a place, of all places there."""
        total = self.shapes[part.tensor][number] - (0 if number else part.skip)
        known = math.prod(part.sizes[name] for name in axis if not name.isdecimal())
        return [total // known if name.isdecimal() else part.sizes[name] for name in axis]

    def make(self, tensor: str, leaf: Callable[[str, Slot], np.ndarray]) -> np.ndarray:
        """A tensor of theirs, from the leaves that it needs.

        Args:
          tensor: its name.
          leaf: gives a part of a leaf.
        """
        out: np.ndarray | None = None
        for part in self.of_tensor[tensor]:
            value = leaf(part.leaf, part.slot)
            value = value.reshape([part.sizes[name] for name in part.names])
            if out is None:
                out = np.zeros(self.shapes[tensor], value.dtype)
            names = [name for axis in part.outer for name in axis]
            counts = [
                count
                for number, axis in enumerate(part.outer)
                for count in self._counts(part, axis, number)
            ]
            view = out[part.skip :].reshape(counts) if names else out
            named = [name for name in names if not name.isdecimal()]
            at = tuple(int(name) if name.isdecimal() else slice(None) for name in names)
            view[at] = value.transpose([part.names.index(name) for name in named])
        assert out is not None, tensor
        return out


def place(part: Part) -> tuple[Any, ...]:
    """What is different between two parts of one leaf or tensor."""
    places = [name for axes in (part.inner, part.outer) for axis in axes for name in axis]
    return (part.leaf, part.tensor, *(name for name in places if name.isdecimal()))


def narrow(
    sizes: Sequence[int], ranges: Sequence[tuple[int, int]]
) -> tuple[slice, list[int], list[slice]]:
    """The least run of entries of one axis that has what is wanted of the axes it consists of.

    Args:
      sizes: of the axes in it.
      ranges: what is wanted of each, start and stop.

    Returns:
      The run, the sizes of the axes in it, and the slices of these that are wanted.
    """
    start = 0
    block = math.prod(sizes)
    left = []
    rest = []
    is_whole = False  # once a range has several entries, all that is inside them is read
    stop = block
    for size, (first, last) in zip(sizes, ranges, strict=True):
        block //= max(size, 1)
        if is_whole:
            left.append(size)
            rest.append(slice(first, last))
            continue
        stop = start + last * block
        start += first * block
        left.append(last - first)
        rest.append(slice(None))
        is_whole = last - first > 1
    return slice(start, stop), left, rest


def tensor_shape(parts: Sequence[Part]) -> Shape:
    """The shape of a tensor from all its parts."""
    shape = []
    for number, axis in enumerate(parts[0].outer):
        places = [int(name) for part in parts for name in part.outer[number] if name.isdecimal()]
        size = math.prod(parts[0].sizes[name] for name in axis if not name.isdecimal())
        shape.append(
            size * (max(places) + 1 if places else 1) + (parts[0].skip if not number else 0)
        )
    return tuple(shape)


def expand(row: Row, leaves: Mapping[str, Shape]) -> list[Part]:
    """The parts of a row: one for each layer, and for each place of a `#`."""
    found = []
    for leaf, numbers, stacked in matches(row.ours, leaves):
        shape = leaves[leaf][1:] if stacked else leaves[leaf]
        for counted in [(number,) for number in range(leaves[leaf][0])] if stacked else [numbers]:
            name = row.theirs
            for number in counted:
                name = name.replace("*", str(number), 1)
            found += with_axes(row, leaf, name, shape, counted if stacked else ())
    return found


def matches(pattern: str, leaves: Mapping[str, Shape]) -> list[tuple[str, tuple[int, ...], bool]]:
    """The leaves of a pattern, each with its numbers, and whether it has all layers, stacked."""
    if "*" not in pattern:
        return [(pattern, (), False)] if pattern in leaves else []
    scanned = pattern.replace("_*", "", 1)
    if scanned in leaves:
        return [(scanned, (), True)]
    expression = re.escape(pattern).replace(r"\*", r"(\d+)")
    found = [(re.fullmatch(expression, leaf), leaf) for leaf in leaves]
    return [(leaf, tuple(map(int, match.groups())), False) for match, leaf in found if match]


def with_axes(row: Row, leaf: str, tensor: str, shape: Shape, layer: tuple[int, ...]) -> list[Part]:
    """The parts of a row for one leaf, or one layer of it, of `shape`."""
    text = row.axes or " ".join(f"a{n}" for n in range(len(shape)))
    left, _, right = text.partition("->")
    outer = parse_axes(left)
    inner = parse_axes(right or left)
    if len(inner) != len(shape):
        raise AssertionError(f"{row}: the leaf {leaf} has {len(shape)} axes.")
    sizes = dict(row.sizes) | {
        axis[0]: size
        for axis, size in zip(inner, shape, strict=True)
        if len(axis) == 1 and not axis[0].isdecimal()
    }
    counts = sizes.pop("#", None)
    stack = tuple((str(number),) for number in layer)
    if counts is None:
        return [Part(leaf, tensor, (*stack, *inner), outer, sizes, row.skip)]
    parts = []
    for number in range(counts):
        numbered = tuple(
            tuple(str(number) if name == "#" else name for name in axis) for axis in inner
        )
        name = tensor.replace("#", str(number))
        parts.append(Part(leaf, name, (*stack, *numbered), outer, sizes, row.skip))
    return parts
