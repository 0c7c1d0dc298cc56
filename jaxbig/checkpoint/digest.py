"""The digest of a state (sha256 of its leaves): equal digests mean equal bits."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxbig.arrays.tree import flatten_with_paths, to_host

CHUNK = 2**22
"""Bytes that are hashed at once."""


def digests(state: Any, progress: Callable[[], None] = lambda: None) -> tuple[dict[str, str], str]:
    """Hashes the leaves of a state.

    Args:
      state: a pytree of arrays, on devices or hosts.
      progress: called before each leaf, which may have to be all-gathered, and before each `CHUNK`.

    Returns:
      The sha256 of each leaf's bytes by path, and `state_sha256`, that of all leaves' bytes in the
      order of paths.
    """
    all_leaves = hashlib.sha256()
    by_path = {}
    for path, leaf in flatten_with_paths(state).items():
        progress()
        data = np.ascontiguousarray(to_host(leaf)).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256()
        for start in range(0, len(data), CHUNK):
            progress()
            digest.update(data[start : start + CHUNK])
            all_leaves.update(data[start : start + CHUNK])
        by_path[path] = digest.hexdigest()
    return by_path, all_leaves.hexdigest()
