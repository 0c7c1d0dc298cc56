"""Reads the weights of a folder into the leaves of a model, each straight into its shards."""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxbig.constraints import validate
from jaxbig.errors import Refused
from jaxbig.pretrained.family import Config, Family
from jaxbig.pretrained.find_family import find_family
from jaxbig.pretrained.weight_files import DTYPES, WeightFolder, read_object
from jaxbig.pretrained.weight_table import Index, Table

PARAMETERS = "params/"
VARIABLES = "variables/"
SHOWN = 3
"""The most names in a message."""
READ_BYTES = 2**26
"""How much of a leaf is read at once, at most, but for one entry of its first axis."""
FLOATS = tuple(name for name in DTYPES if "F" in name)
"""The dtypes of weights that are read."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A folder of pretrained weights."""

    folder: Path
    config: Config
    family: Family
    weights: WeightFolder

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of our model of the folder."""
        return self.family.fields(self.config)

    def differences(self, model: nn.Module, *, heads: bool = True) -> list[str]:
        """How the folder's model differs from one of ours, a line a field.

        Args:
          model: ours.
          heads: whether their heads are compared too.
        """
        return self.family.differences(self.config, model, heads=heads)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Leaves of a state from a folder."""

    leaves: dict[str, jax.Array]
    """By their path in a state, as "params/tokens/embedding"."""
    fresh: tuple[str, ...]
    """Paths of leaves that the folder does not have."""
    left_out: tuple[str, ...]
    """Names of tensors that the model does not have."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What is read of a folder for a model."""

    table: Table
    found: Mapping[str, str]
    """The leaves that are read: their path in a state, and their name in the table."""
    stored: Mapping[str, str]
    """The tensors that can be read: their name in the table, and in the folder."""
    left_out: tuple[str, ...]
    """Names of tensors that the model does not have."""


def open_pretrained(folder: str | Path) -> Pretrained:
    """A folder as Hugging Face has them; no weights are read.

    Raises:
      Refused: it is of a family that we do not have, or not whole.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder: give one with config.json and model.safetensors.")
    if not (folder / "config.json").exists():
        raise Refused(f"{folder} has no config.json: give a folder as save_pretrained writes it.")
    config = read_object(folder / "config.json")
    family = find_family(config)
    check_values(folder / "config.json", family, config)
    return Pretrained(folder, config, family, WeightFolder(folder))


def check_values(file: Path, family: Family, config: Config) -> None:
    """Raises `Refused` if a config has a value that no model of its family has."""
    try:
        model = family.module(**family.fields(config))
        validate_in(file, model)
        family.differences(config, model)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Refused(
            f"{file} has a value that no {family.model_type} model has ({error}): copy the folder "
            f"again."
        ) from error


def validate_in(file: Path, model: nn.Module) -> None:
    """Raises `Refused` for a number that the model of a config cannot have."""
    try:
        validate(model, "model")
    except Refused as error:
        raise Refused(f"{file}: {error}") from None


def table_name(path: str) -> str:
    """The name that a table has for a leaf of a state."""
    return path.removeprefix(PARAMETERS).removeprefix(VARIABLES)


def load(
    source: Pretrained,
    model: nn.Module,
    leaves: Mapping[str, jax.ShapeDtypeStruct],
    *,
    pattern: str = ".*",
) -> Loaded:
    """Reads the leaves of a model, one after the other.

    Args:
      source: the folder.
      model: of its family.
      leaves: shape, dtype and sharding of every leaf, by its path in a state.
      pattern: regular expression, searched for in the paths without "params/", of the leaves that
        are read.

    Raises:
      Refused: a tensor is missing, left over, or of another shape.
    """
    chosen = choose(source, model, leaves, pattern=pattern)

    def read(tensor: str, index: Index) -> np.ndarray:
        return source.weights.read(chosen.stored[tensor], index)

    loaded = {
        path: place(leaves[path], functools.partial(chosen.table.read, leaf, read=read))
        for path, leaf in chosen.found.items()
    }
    return Loaded(loaded, tuple(path for path in leaves if path not in loaded), chosen.left_out)


def choose(
    source: Pretrained,
    model: nn.Module,
    leaves: Mapping[str, jax.ShapeDtypeStruct],
    *,
    pattern: str = ".*",
) -> Chosen:
    """Which tensors `load` reads; takes and raises what it does, and reads none."""
    table = Table(source.family.rows(model), {table_name(p): x.shape for p, x in leaves.items()})
    wanted = {path: table_name(path) for path in leaves if re.search(pattern, table_name(path))}
    stored, left_out = match(source, table, set(wanted.values()))
    found = {path: leaf for path, leaf in wanted.items() if covered(table, leaf, stored)}
    for path, leaf in wanted.items():
        if path not in found and not is_any(leaf, source.family.heads):
            parts = table.of_leaf.get(leaf, ())
            missing = [part.tensor for part in parts if part.tensor not in stored]
            raise Refused(
                f"{source.folder} has no tensor {some(missing) or 'for it'}: {leaf} is made of it."
            )

    return Chosen(table, found, stored, tuple(left_out))


def covered(table: Table, leaf: str, stored: Mapping[str, str]) -> bool:
    """Whether the folder has all tensors of a leaf."""
    parts = table.of_leaf.get(leaf, ())
    return bool(parts) and all(part.tensor in stored for part in parts)


def match(
    source: Pretrained, table: Table, wanted: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Finds the tensors of a table in a folder.

    Args:
      source: the folder.
      table: of the model.
      wanted: the leaves that are read.

    Returns:
      The name in the folder of each tensor that can be read, by its name in the table; and the
      tensors that are left out, since the model has no such head, or one of another shape.

    Raises:
      Refused: a tensor is left over, or has another shape.
    """
    family = source.family
    there = source.weights.tensors
    names = {canonical(family, name, there): name for name in there}
    stored = {}
    left = []
    for name, own in names.items():
        leaves = dict.fromkeys(part.leaf for part in table.of_tensor.get(name, ()))
        is_head = all(is_any(leaf, family.heads) for leaf in leaves)
        if name in table.shapes and there[own].shape == table.shapes[name]:
            stored[name] = own
        elif name in table.shapes and not is_head and set(leaves) & set(wanted):
            raise Refused(
                f"{there[own].file}: tensor {own} is {list(there[own].shape)}, and for "
                f"{some(leaves)} it must be {list(table.shapes[name])}."
            )
        elif not is_any(name, family.ignored):
            left.append(name)
    for own in stored.values():
        if there[own].dtype not in FLOATS:
            raise Refused(
                f"{there[own].file}: tensor {own} is {there[own].dtype}: jaxbig reads "
                f"{', '.join(FLOATS)}."
            )
    twice = [name for name in left if family.tied.get(name) in stored]
    for name in twice:
        check_tied(source, names[name], stored[family.tied[name]])
    left = [name for name in left if name not in twice]
    allowed = [*family.left_out, *map(re.escape, table.shapes)]
    if over := [names[name] for name in left if not is_any(name, allowed)]:
        raise Refused(
            f"{source.folder} has tensor {some(over)}, which a {family.model_type} model of these "
            f"fields does not have."
        )
    return stored, [names[name] for name in left]


def canonical(family: Family, name: str, names: Iterable[str]) -> str:
    """The name that the family's table has for a tensor of a folder with these tensors."""
    for older, now in family.older.items():
        name = name.replace(older, now)
    if family.prefix and not any(each.startswith(family.prefix) for each in names):
        return family.prefix + name
    return name


def check_tied(source: Pretrained, name: str, same: str) -> None:
    """Raises `Refused` if a tensor is not the same as one that the config says it is."""
    one = source.weights.tensors[name]
    other = source.weights.tensors[same]
    whole = tuple(slice(0, size) for size in one.shape)
    if one.shape != other.shape or not np.array_equal(
        source.weights.read(name, whole), source.weights.read(same, whole)
    ):
        raise Refused(
            f"{source.folder}: config.json says that tensor {name} is {same}, and it is another: "
            f"set tie_word_embeddings to false there."
        )


def place(leaf: jax.ShapeDtypeStruct, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """An array on the devices, whose shards are read one after the other.

    Args:
      leaf: its shape, dtype and sharding.
      read: gives the part at an index.
    """
    sharding: Any = leaf.sharding
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(each.indices(size)[:2] for each, size in zip(index, leaf.shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    shards = []
    for bounds, places in devices.items():
        part = read_cast(bounds, leaf.dtype, read)
        for device in places:
            at = jax.sharding.SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            shards.append(jax.device_put(part, at))
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards, dtype=leaf.dtype)


def read_cast(
    bounds: tuple[tuple[int, int], ...], dtype: Any, read: Callable[[Index], np.ndarray]
) -> np.ndarray:
    """A part of a leaf in its dtype, of which `READ_BYTES` are read at once, in that of the file.

    Args:
      bounds: start and stop on each axis.
      dtype: of the leaf.
      read: gives the part at an index.
    """
    part = np.empty([stop - start for start, stop in bounds], dtype)
    if not bounds:
        part[...] = read(())
        return part
    (first, last), *others = bounds
    rows = max(1, READ_BYTES * max(last - first, 1) // max(part.nbytes, 1))
    for start in range(first, last, rows):
        stop = min(start + rows, last)
        index = (slice(start, stop), *(slice(*each) for each in others))
        part[start - first : stop - first] = read(index)
    return part


def is_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the regular expressions fits a whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def some(names: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
