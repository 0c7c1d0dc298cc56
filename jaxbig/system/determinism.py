"""Sets XLA's flags for bitwise equal runs, before JAX starts its backend.

On a CPU the number of threads decides the order of sums in a product. On a GPU XLA measures which
kernels are fastest, and some of these sum by atomic operations, in the order in which threads
finish.
"""

import os

import jax
from jax._src import xla_bridge  # whether a backend has started has no public name

from jaxbig.errors import Refused

FLAG = "--xla_gpu_deterministic_ops"
"""XLA's flag: no kernels that sum by atomics, and none chosen by measuring."""


def set_deterministic(deterministic: bool, chunks: int) -> None:
    """Sets the environment for a deterministic run.

    Call it before any device is used. A value of the flag that the user has set stays.

    Args:
      deterministic: use only deterministic kernels.
      chunks: number of gradient chunks summed in a fixed order; 0: none.

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
                f"a deterministic run needs XLA's flag {FLAG}, and JAX has started its GPU "
                f"already: set XLA_FLAGS={FLAG}=true before Python starts, or start the run before "
                f"any other JAX call."
            )
        os.environ["XLA_FLAGS"] = " ".join([*flags, f"{FLAG}=true"])


def check_threads(chunks: int) -> None:
    """Raises `Refused` if JAX computes on a CPU with another number of threads than these chunks.

    Args:
      chunks: as of `set_deterministic`.
    """
    if (
        chunks
        and started()
        and jax.default_backend() == "cpu"
        and os.environ.get("NPROC") != str(chunks)
    ):
        raise Refused(
            f"reproducible {chunks} needs {chunks} threads, and JAX has started its CPU with "
            f"another number already: set NPROC={chunks} before Python starts, or start the run "
            f"before any other JAX call."
        )


def is_deterministic() -> bool:
    """Whether XLA's flag is set in the environment."""
    return any(
        flag in (FLAG, f"{FLAG}=true", f"{FLAG}=1")
        for flag in os.environ.get("XLA_FLAGS", "").split()
    )


def started() -> bool:
    """Whether JAX has started a backend; flags that are set later have no effect."""
    return xla_bridge.backends_are_initialized()
