"""What makes a run's bits the same each time on one machine, and must be set before JAX starts its backend.

On a CPU the number of threads decides in which order a product is added up. On a GPU XLA measures which kernels are the
fastest and takes those, and some add up by atomic operations in the order in which their threads happen to come.
"""

import os

import jax
from jax._src import xla_bridge  # whether a backend has started has no public name

from jaxbig.errors import Refused

FLAG = "--xla_gpu_deterministic_ops"
"""XLA's flag: no kernel that adds up by atomics, and none chosen by measuring."""


def set_deterministic(deterministic: bool, chunks: int) -> None:
    """Sets what a deterministic run, or one in `chunks` of a fixed order (0: none), needs of its environment.

    Call it before a device is touched. A value of the flag that the user has set stays.

    Raises:
      Refused: a GPU backend has started without the flag.
    """
    if chunks:
        os.environ["NPROC"] = str(chunks)  # XLA's number of threads on a CPU
    if not (deterministic or chunks):
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    if FLAG not in [flag.split("=")[0] for flag in flags]:
        if started() and jax.default_backend() == "gpu":
            raise Refused(
                f"a deterministic run needs XLA's flag {FLAG}, and JAX has started its GPU already: set "
                f"XLA_FLAGS={FLAG}=true before Python starts, or begin the run before any other JAX call."
            )
        os.environ["XLA_FLAGS"] = " ".join([*flags, f"{FLAG}=true"])


def is_deterministic() -> bool:
    """Whether XLA's flag is set in the environment."""
    return any(
        flag in (FLAG, f"{FLAG}=true", f"{FLAG}=1")
        for flag in os.environ.get("XLA_FLAGS", "").split()
    )


def started() -> bool:
    """Whether JAX has started a backend, so that flags come too late."""
    return xla_bridge.backends_are_initialized()
