"""The comparison of the copies that devices have of a run's state, every few steps."""

import logging
from typing import Any

import jax
import numpy as np

from jaxbig.distributed.multihost import is_process_zero
from jaxbig.errors import Failed
from jaxbig.program.program import Program
from jaxbig.program.replicas import copied_leaves, differing, make_checksums

log = logging.getLogger("jaxbig")


class ReplicaCheck:
    """Compares the copies of a state every `guard.compare_replicas` steps and before each save; 0:
    never."""

    def __init__(self, program: Program):
        self.program = program
        self.every = program.experiment.guard.compare_replicas
        copied = len(copied_leaves(program.abstract))
        if self.every and is_process_zero():
            log.info("comparing the copies of %d leaves of the state", copied)
        if not copied:
            self.every = 0
        self.checksums: Any = make_checksums(program.abstract, program.mesh)
        self.pending: tuple[int, jax.Array] | None = None
        self.equal_after = -1

    def __call__(self, step: int, state: Any) -> None:
        """Finishes the comparison before, and begins one if it is due after this step."""
        self.finish()
        if self.every and not step % self.every:
            self.pending = step, self.checksums(state)

    def before_save(self, step: int, state: Any) -> None:
        """Compares a state that is to be saved; raises `Failed` if copies differ."""
        if self.every and self.pending is None:
            self.pending = step, self.checksums(state)
        self.finish()

    def finish(self) -> None:
        """Raises `Failed` if the copies of the pending comparison differ."""
        if self.pending is None:
            return
        step, checksums = self.pending
        self.pending = None
        found = differing(self.program.abstract, self.program.mesh, np.asarray(checksums))
        if not found:
            self.equal_after = step
            return
        path, devices = next(iter(found.items()))
        names = ", ".join(map(str, devices[:8])) + ", ..." * (len(devices) > 8)
        more = f" and of {len(found) - 1} more leaves" * (len(found) > 1)
        before = f"; they were equal after step {self.equal_after}" * (self.equal_after >= 0)
        raise Failed(
            f"step {step}: the copies of {path}{more} differ on {names}{before}. It was not saved. "
            f"If it is one device, its chip may be faulty: leave it out. Otherwise the step lacks "
            f"a sum over devices: `jaxbig check` compares its gradient with that of one device."
        )
