"""The proof, at the start of a run, that its step is deterministic on its devices."""

import contextlib
import logging
from typing import Any

import jax
import numpy as np
from blake3 import blake3

from jaxbig.arrays.tree import HOST
from jaxbig.checkpoint.digest import digests
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Failed
from jaxbig.program.interpreter import Interpreter, where
from jaxbig.program.program import Program

log = logging.getLogger("jaxbig")

STEPS = 2
"""That are made twice."""


def prove_determinism(program: Program, train_step: Any, state: Any, batches: list[Any]) -> Any:
    """Makes the same steps twice, and compares the states bit by bit.

    Meanwhile the state is in host memory, so that devices need no more memory than in a step.

    Args:
      program: of the run.
      train_step: its compiled step.
      state: before the first of the steps; it is given away.
      batches: of the steps, this process's rows.

    Returns:
      The state as it was given.

    Raises:
      Failed: the states differ; names the first leaf, and the first operation if one differs alone.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    kept = jax.device_put(state, jax.tree.map(lambda each: each.with_memory_kind(HOST), shardings))
    jax.block_until_ready(kept)  # the first step gives the state away
    leaves = []
    for again in (False, True):
        if again:
            state = jax.device_put(kept, shardings)
        for batch in batches:
            state, _ = train_step(state, device_put_batch(batch, program.mesh))
        leaves.append(digests(state)[0])
    state = jax.device_put(kept, shardings)
    differing = [path for path, digest in leaves[0].items() if leaves[1][path] != digest]
    if differing:
        batch = device_put_batch(batches[0], program.mesh)
        operation = ""
        if jax.process_count() == 1:
            traced = program.train_step.trace(state, batch).jaxpr
            operation = first_differing(traced, jax.tree.leaves((state, batch)))
        raise Failed(
            f"{len(batches)} steps were made twice from one state, and {len(differing)} of "
            f"{len(leaves[0])} leaves differ, the first in {differing[0]}{operation}. Give "
            f"--deterministic on a GPU, and use no callback that returns other values."
        )
    log.info("%d steps were made twice: all bits are equal", len(batches))
    return state


def first_differing(program: Any, values: list[Any]) -> str:
    """The first operation that gives other bits when it is repeated, in words.

    Args:
      program: a closed jaxpr.
      values: its inputs.
    """
    recorder = Recorder()
    for _ in range(2):
        recorder.number = 0
        with contextlib.suppress(Found):
            recorder.closed(program, values)
    if recorder.found:
        return f". The first operation that differs is {recorder.found}"
    return ". No operation differs when it is made alone, so it is a fused one"


class Found(Exception):
    """Stops evaluation at the first operation that differs."""


class Recorder(Interpreter):
    """Hashes each operation's outputs, and compares them with those of the evaluation before."""

    def __init__(self) -> None:
        self.hashes: list[bytes] = []
        self.number = 0
        self.found = ""

    def judge(self, equation: Any, given: list[Any], made: list[Any]) -> None:
        """Records an operation, or compares it; raises `Found` where it differs."""
        digest = blake3()
        for each in made:
            if not jax.dtypes.issubdtype(each.dtype, jax.dtypes.prng_key):
                digest.update(np.asarray(each).tobytes())
        if self.number == len(self.hashes):
            self.hashes.append(digest.digest())
        elif self.hashes[self.number] != digest.digest():
            place = where(equation)
            within = f", within {place['within']}" if place["within"] else ""
            self.found = f"{equation.primitive.name} at {place['where']}{within}"
            raise Found
        self.number += 1
