"""The comparison of the copies that devices have of a run's state, every few steps."""

from typing import Any

import jax
import numpy as np

from jaxbig.errors import Failed
from jaxbig.program.program import Program
from jaxbig.program.replicas import copied_leaves, differing, make_checksums


class ReplicaCheck:
    """Compares the copies of a state after every `guard.compare_replicas` steps; 0: never."""

    def __init__(self, program: Program):
        self.program = program
        self.every = program.experiment.guard.compare_replicas
        if not (self.every and copied_leaves(program.abstract)):
            self.every = 0
        self.checksums: Any = make_checksums(program.abstract, program.mesh)
        self.pending: tuple[int, jax.Array] | None = None
        self.equal_after = -1

    def __call__(self, step: int, state: Any) -> None:
        """Begins to compare, if that is due after this step; `finish` is called a step later."""
        self.finish()
        if self.every and not step % self.every:
            self.pending = step, self.checksums(state)

    def finish(self) -> None:
        """Returns if the copies were equal; raises `Failed`."""
        if self.pending is None:
            return
        step, checksums = self.pending
        self.pending = None
        found = differing(self.program.abstract, self.program.mesh, np.asarray(checksums))
        if not found:
            self.equal_after = step
            return
        path, devices = next(iter(found.items()))
        names = ", ".join(map(str, devices[:4])) + ", ..." * (len(devices) > 4)
        before = f"; they were equal after step {self.equal_after}" * (self.equal_after >= 0)
        more = f", and those of {len(found) - 1} more leaves" * (len(found) > 1)
        raise Failed(
            f"step {step}: the copies of {path} differ: that of {names} is not that of most "
            f"devices{more}{before}. Nothing was saved since. If it is one device, its chip may be "
            f"faulty: leave it out. Otherwise the step lacks a sum over devices: `jaxbig check` "
            f"compares its gradient with that of one device."
        )
