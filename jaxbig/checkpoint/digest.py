"""The digest of a state: equal digests mean equal bits, on any devices and processes.

Each array is cut into chunks, by its shape alone. A process hashes the chunks that its own devices
hold, with BLAKE3, and process 0 hashes the chunks' hashes. Where a device holds less than a chunk,
neighbors are joined first, so no process needs a whole array.
"""

import base64
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np
from blake3 import blake3

from jaxbig.arrays.tree import HOST, flatten_with_paths
from jaxbig.distributed.multihost import on_process_zero, send_to_process_zero, unique_key

CHUNK = 2**18
"""Bytes of a chunk, at most, unless no axis can be halved further."""
JOINED = 2**26
"""Bytes of the arrays that are joined at once."""
SIZE = 32
"""Bytes of a hash."""
THREADS = 4
"""The number that hash at once."""
Chunks = dict[str, dict[int, bytes]]
"""The hashes of some chunks of each array, by its path and the chunk's number."""


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The shape of an array's chunks, but the last ones of an odd axis.

    An axis is halved until a chunk fits `CHUNK`: the one with the fewest halvings, of these the
    longest, of these the first. An even axis is halved while its half is whole, so that what 2, 4,
    8, ... devices have of it, up to the number of its chunks, are whole chunks.
    """
    sizes = [max(size, 1) for size in shape]  # an empty axis has no chunk
    halvings = [0] * len(sizes)
    while math.prod(sizes) * itemsize > CHUNK:
        left = [
            axis
            for axis, size in enumerate(sizes)
            if size % 2 == 0 or (shape[axis] % 2 and size > 1)
        ]
        if not left:
            break
        axis = min(left, key=lambda axis: (halvings[axis], -sizes[axis]))
        sizes[axis] = -(-sizes[axis] // 2)
        halvings[axis] += 1
    return tuple(sizes)


def _counts(shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[int]:
    """How many chunks of that shape an array has along each axis."""
    return [-(-whole // size) for whole, size in zip(shape, sizes, strict=True)]


@dataclasses.dataclass(frozen=True)
class Part:
    """What one device has of an array, in host memory."""

    path: str
    start: tuple[int, ...]
    """Its place in the array."""
    data: np.ndarray
    shape: tuple[int, ...]
    """Of the array."""

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The number of each chunk in the array, in C order, and its elements."""
        sizes = chunk_shape(self.shape, self.data.dtype.itemsize)
        counts = _counts(self.shape, sizes)
        places = [
            range(first, first + length, size)
            for first, length, size in zip(self.start, self.data.shape, sizes, strict=True)
        ]
        for place in itertools.product(*places):
            number = 0
            for at, size, count in zip(place, sizes, counts, strict=True):
                number = number * count + at // size
            inside = tuple(
                slice(at - first, at - first + size)
                for at, first, size in zip(place, self.start, sizes, strict=True)
            )
            yield number, self.data[inside]


def local_parts(state: Any, replicas: bool = False) -> list[Part]:
    """What this process's devices hold of a state; every process of a run must call this.

    Args:
      state: a pytree of arrays, on devices or hosts.
      replicas: also those that another process has too; else each is one process's alone.
    """
    leaves = flatten_with_paths(state)
    cut = {path: leaf for path, leaf in leaves.items() if not _holds_whole_chunks(leaf)}
    whole = {path: leaf for path, leaf in leaves.items() if path not in cut}
    for leaf in whole.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    parts = []
    for batch in _batches(cut):
        for path, leaf in _joined(batch).items():
            parts.extend(_parts(path, leaf, replicas))
    for path, leaf in whole.items():
        parts.extend(_parts(path, leaf, replicas))
    return parts


def _parts(path: str, leaf: Any, replicas: bool) -> Iterator[Part]:
    if not isinstance(leaf, jax.Array):
        if replicas or jax.process_index() == 0:
            yield Part(path, (0,) * np.ndim(leaf), np.asarray(leaf), np.shape(leaf))
        return
    seen = set()
    for shard in leaf.addressable_shards:
        start = tuple(
            index.indices(size)[0] for index, size in zip(shard.index, leaf.shape, strict=True)
        )
        if (replicas or shard.replica_id == 0) and start not in seen:
            seen.add(start)
            yield Part(path, start, np.asarray(shard.data), leaf.shape)


def _holds_whole_chunks(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    part = leaf.sharding.shard_shape(leaf.shape)
    sizes = chunk_shape(leaf.shape, leaf.dtype.itemsize)
    return all(
        held in (whole, 0) or held % size == 0
        for held, whole, size in zip(part, leaf.shape, sizes, strict=True)
    )


def _batches(leaves: dict[str, jax.Array]) -> Iterator[dict[str, jax.Array]]:
    """The arrays in groups of up to `JOINED` bytes, or one, of the same devices."""
    batch: dict[str, jax.Array] = {}
    for path, leaf in leaves.items():
        size = sum(each.nbytes for each in (leaf, *batch.values()))
        others = {each.sharding.device_set == leaf.sharding.device_set for each in batch.values()}
        if batch and (size > JOINED or False in others):
            yield batch
            batch = {}
        batch[path] = leaf
    if batch:
        yield batch


def _joined(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The arrays over so few devices that each holds whole chunks; the others have copies."""
    on_device = [
        jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
        if leaf.sharding.memory_kind == HOST
        else leaf
        for leaf in leaves.values()
    ]
    join = _make_join(tuple(_wider(leaf) for leaf in on_device))
    return dict(zip(leaves, join(*on_device), strict=True))


@functools.cache
def _make_join(shardings: tuple[jax.sharding.NamedSharding, ...]) -> Any:
    """The function from arrays to the same arrays with those shardings, compiled once."""
    return jax.jit(lambda *arrays: arrays, out_shardings=shardings)


def _wider(leaf: jax.Array) -> jax.sharding.NamedSharding:
    """A sharding over the same devices, over as many of them as have whole chunks.

    An axis of the mesh that is too long is split in two, of which the first alone shards the array:
    512 devices along an axis of 64 chunks are joined by eights.
    """
    sharding = leaf.sharding
    assert isinstance(sharding, jax.sharding.NamedSharding)
    mesh = sharding.mesh
    assert isinstance(mesh, jax.sharding.Mesh)
    chunk = chunk_shape(leaf.shape, leaf.dtype.itemsize)
    kept = dict(mesh.shape)
    spec = []
    for axis, entry in enumerate(sharding.spec):
        along = (entry,) if isinstance(entry, str) else tuple(entry or ())
        parts = 1
        whole = True
        for name in along:
            fits = [
                count
                for count in range(1, mesh.shape[name] + 1)
                if mesh.shape[name] % count == 0
                and leaf.shape[axis] // (parts * count) % chunk[axis] == 0
            ]
            kept[name] = max(fits, default=1) if whole else 1
            whole = kept[name] == mesh.shape[name]
            parts *= kept[name]
        spec.append(along or None)
    sizes: list[int] = []
    names: list[str] = []
    for name, size in mesh.shape.items():
        sizes += [kept[name], size // kept[name]]
        names += [name, f"{name} joined"]
    split = jax.sharding.Mesh(mesh.devices.reshape(sizes), names)
    return jax.sharding.NamedSharding(split, jax.sharding.PartitionSpec(*spec))


def hash_chunks(
    parts: list[Part], progress: Callable[[], None] = lambda: None, *, threads: int = THREADS
) -> Chunks:
    """Hashes the chunks of parts; any thread may call this.

    Args:
      parts: of a state.
      progress: called after each part.
      threads: how many hash at once.
    """
    found: Chunks = {}
    with futures.ThreadPoolExecutor(threads, thread_name_prefix="digest") as pool:
        for part, hashes in zip(parts, pool.map(_hash_part, parts), strict=True):
            found.setdefault(part.path, {}).update(hashes)
            progress()
    return found


def _hash_part(part: Part) -> dict[int, bytes]:
    return {
        number: blake3(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data).digest()
        for number, chunk in part.chunks()
    }


def collect(chunks: Chunks, key: str) -> dict[str, bytes]:
    """The hashes of all chunks of each array, in order, on process 0; nothing on the others.

    Args:
      chunks: of this process.
      key: of `unique_key`, which all processes give.
    """
    text = json.dumps(
        {
            path: [list(hashes), base64.b64encode(b"".join(hashes.values())).decode()]
            for path, hashes in chunks.items()
        }
    )
    found: Chunks = {}
    for each in send_to_process_zero(key, text):
        for path, (numbers, encoded) in json.loads(each).items():
            data = base64.b64decode(encoded)
            found.setdefault(path, {}).update(
                (number, data[SIZE * i : SIZE * (i + 1)]) for i, number in enumerate(numbers)
            )
    return {
        path: b"".join(found[path][number] for number in sorted(found[path]))
        for path in sorted(found)
    }


def split_hashes(data: bytes, shapes: dict[str, tuple[tuple[int, ...], int]]) -> dict[str, bytes]:
    """The hashes of each array, of those of all arrays in the order of their paths.

    Args:
      data: what `collect` returns, joined.
      shapes: shape and bytes of an element of each array, by path.
    """
    found = {}
    start = 0
    for path in sorted(shapes):
        shape, itemsize = shapes[path]
        end = start + SIZE * math.prod(_counts(shape, chunk_shape(shape, itemsize)))
        found[path] = data[start:end]
        start = end
    return found


def first_changed(parts: list[Part], chunks: Chunks, saved: dict[str, bytes]) -> str:
    """The first chunk whose hash is not that which was saved, as `params/kernel[0:16, 64:128]`;
    "" if there is none.

    Args:
      parts: of the arrays.
      chunks: their hashes.
      saved: by path.
    """
    for part in parts:
        for number, chunk in part.chunks():
            expected = saved[part.path][SIZE * number : SIZE * (number + 1)]
            if chunks[part.path][number] != expected:
                sizes = chunk_shape(part.shape, part.data.dtype.itemsize)
                place = np.unravel_index(number, _counts(part.shape, sizes)) if sizes else ()
                spans = [
                    f"{at * size}:{at * size + length}"
                    for at, size, length in zip(place, sizes, chunk.shape, strict=True)
                ]
                return f"{part.path}[{', '.join(spans)}]"
    return ""


def leaf_digests(hashes: dict[str, bytes]) -> dict[str, str]:
    """The sha256 of each array's hashes, in the order of its chunks, by path."""
    return {path: hashlib.sha256(each).hexdigest() for path, each in hashes.items()}


def state_digest(leaf_digests: dict[str, str]) -> str:
    """The sha256 of all arrays' digests, in the order of their paths."""
    joined = "".join(leaf_digests[path] for path in sorted(leaf_digests))
    return hashlib.sha256(joined.encode()).hexdigest()


def digests(state: Any, progress: Callable[[], None] = lambda: None) -> tuple[dict[str, str], str]:
    """Hashes the leaves of a state; every process of a run must call this.

    Args:
      state: a pytree of arrays, on devices or hosts.
      progress: called after each device's part of a leaf.

    Returns:
      The digest of each leaf by path, and `state_sha256`, that of the whole.
    """
    hashes = collect(hash_chunks(local_parts(state), progress), unique_key())
    by_path: dict[str, str] = on_process_zero(lambda: leaf_digests(hashes))
    return by_path, state_digest(by_path)
