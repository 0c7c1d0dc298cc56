"""The whole of what training changes, and the digest that says two runs are the same run."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxbig.arrays.tree import flatten_with_paths, to_host

PIECE = 2**22
"""Bytes that are hashed at once."""


def digests(state: Any, progress: Callable[[], None] = lambda: None) -> tuple[dict[str, str], str]:
    """The sha256 of each leaf's bytes by path, and `state_sha256`, over all leaves' bytes in path order.

    progress: called before each leaf, which may have to be gathered, and before each `PIECE` of its bytes.
    """
    all_leaves, each = hashlib.sha256(), {}
    for path, leaf in flatten_with_paths(state).items():
        progress()
        data = np.ascontiguousarray(to_host(leaf)).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256()
        for begin in range(0, len(data), PIECE):
            progress()
            digest.update(data[begin : begin + PIECE])
            all_leaves.update(data[begin : begin + PIECE])
        each[path] = digest.hexdigest()
    return each, all_leaves.hexdigest()
