"""The digest of a state: equal digests mean equal bits, on any devices and processes.

Each array is cut into chunks, by its shape alone. A process hashes the chunks that its own devices
hold, with BLAKE3, and process 0 hashes the chunks' hashes: no process needs a whole array.
"""

import base64
import dataclasses
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
"""Bytes of a chunk, at most."""
SIZE = 32
"""Bytes of a hash."""
THREADS = 4
"""That hash parts at once, where nothing else has to be done."""
Chunks = dict[str, dict[int, bytes]]
"""The hashes of some chunks of each array, by its path and the chunk's number."""


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The shape of an array's chunks but the last ones: its longest axis, the first of equals, is
    halved until they fit `CHUNK`. So the parts of 2, 4, 8, ... devices are whole chunks."""
    sizes = list(shape)
    while math.prod(sizes) * itemsize > CHUNK:
        longest = sizes.index(max(sizes))
        sizes[longest] = -(-sizes[longest] // 2)
    return tuple(max(size, 1) for size in sizes)  # of an empty array no axis is 0


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

    Where a device's part ends within a chunk, parts are joined over the devices first.

    Args:
      state: a pytree of arrays, on devices or hosts.
      replicas: also those that another process has too; else each is one process's alone.
    """
    leaves = flatten_with_paths(state)
    cut = {path: leaf for path, leaf in leaves.items() if not _holds_whole_chunks(leaf)}
    leaves |= _joined(cut)
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return [part for path, leaf in leaves.items() for part in _parts(path, leaf, replicas)]


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


def _joined(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The arrays over so few devices that each has whole chunks."""
    if not leaves:
        return {}
    on_device = {
        path: jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
        if leaf.sharding.memory_kind == HOST
        else leaf
        for path, leaf in leaves.items()
    }
    shardings = {path: _wider(leaf) for path, leaf in on_device.items()}
    return jax.jit(lambda arrays: arrays, out_shardings=shardings)(on_device)


def _wider(leaf: jax.Array) -> jax.sharding.NamedSharding:
    """The sharding without the last axes of the mesh that cut chunks."""
    sharding = leaf.sharding
    assert isinstance(sharding, jax.sharding.NamedSharding)
    sizes = chunk_shape(leaf.shape, leaf.dtype.itemsize)
    spec = []
    for axis, names in enumerate(sharding.spec):
        names = (names,) if isinstance(names, str) else tuple(names or ())
        while names:
            held = leaf.shape[axis] // math.prod(sharding.mesh.shape[name] for name in names)
            if held % sizes[axis] == 0:
                break
            names = names[:-1]
        spec.append(names or None)
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec))


def hash_chunks(
    parts: list[Part], progress: Callable[[], None] = lambda: None, *, threads: int = THREADS
) -> Chunks:
    """Hashes the chunks of parts; any thread may call this.

    Args:
      parts: of a state.
      progress: called after each part.
      threads: that hash at once.
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
