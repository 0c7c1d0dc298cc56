"""The proof, at the start of a run, that its step is deterministic on its devices."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from blake3 import blake3

from jaxbig.arrays.tree import HOST, copy_host_leaves
from jaxbig.checkpoint.digest import digests
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Failed
from jaxbig.program.interpreter import Interpreter, where
from jaxbig.program.program import Program, make_program
from jaxbig.program.teacher import TEACHER

log = logging.getLogger("jaxbig")

STEPS = 2
"""How many are made twice."""


def prove_determinism(
    program: Program,
    train_step: Any,
    state: Any,
    batches: list[Any],
    *,
    progress: Callable[[], None] = lambda: None,
) -> Any:
    """Makes the same steps twice, and compares the states bit by bit.

    Meanwhile the state is in host memory too, and on the devices once.

    Args:
      program: of the run.
      train_step: its compiled step.
      state: before the first of the steps; it is given away.
      batches: of the steps, this process's rows.
      progress: called before each step, and as the states are hashed.

    Returns:
      The state as it was given.

    Raises:
      Failed: the states differ; names the first leaf, and the first operation if one differs alone.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    on_host = jax.tree.map(lambda each: each.with_memory_kind(HOST), shardings)
    # of a leaf that is there already the first step would give away the only copy
    kept = jax.device_put(copy_host_leaves(state), on_host)
    jax.block_until_ready(kept)
    leaves = []
    for _ in range(2):
        for batch in batches:
            progress()
            state, _ = train_step(state, device_put_batch(batch, program.mesh))
        leaves.append(digests(state, progress)[0])
        del state  # its memory is free for the next
        state = jax.device_put(copy_host_leaves(kept), shardings)
    differing = [path for path, digest in leaves[0].items() if leaves[1][path] != digest]
    if differing:
        operation = ""
        if jax.process_count() == 1:
            operation = first_differing(*traced(program, train_step, state, batches[0]))
        raise Failed(
            f"{len(batches)} steps were made twice from one state, and {len(differing)} of "
            f"{len(leaves[0])} leaves differ, the first in {differing[0]}{operation}. Give "
            f"--deterministic on a GPU, and use no callback that returns other values."
        )
    log.info("%d steps were made twice: all bits are equal", len(batches))
    return state


def traced(program: Program, train_step: Any, state: Any, rows: Any) -> tuple[Any, list[Any]]:
    """The jaxpr of a step, and its inputs."""
    # what stands inside `shard_map` cannot be made an operation at a time
    plain = make_program(dataclasses.replace(program.experiment, reproducible=0))
    batch = device_put_batch(rows, program.mesh)
    if hasattr(train_step, "teacher"):
        batch[TEACHER] = train_step.teacher
    return plain.train_step.trace(state, batch).jaxpr, jax.tree.leaves((state, batch))


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
