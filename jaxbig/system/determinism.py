"""Sets XLA's flags for bitwise equal runs, before JAX starts its backend.

On a CPU the number of threads decides the order of sums in a product. XLA may also fuse a product
and a sum into one instruction, which rounds once; whether it does depends on the rest of the
program. On a GPU XLA measures which kernels are fastest, and some of these sum by atomic
operations, in the order in which threads finish.
"""

import os
import platform

import jax
from jax._src import xla_bridge  # whether a backend has started has no public name

from jaxbig.errors import Refused

FLAG = "--xla_gpu_deterministic_ops"
"""XLA's flag: no kernels that sum by atomics, and none chosen by measuring."""
UNFUSED = "--xla_cpu_max_isa=AVX"
"""XLA's flag: instructions of x86 without the fused multiply-add."""


def set_deterministic(deterministic: bool, chunks: int) -> None:
    """Sets the environment for a deterministic run.

    Call it before any device is used. A flag that the user has set keeps its value.

    Args:
      deterministic: use only deterministic kernels.
      chunks: number of gradient chunks summed in a fixed order; 0: none.

    Raises:
      Refused: a GPU backend has started without the flag.
    """
    if not (deterministic or chunks):
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    if chunks:
        os.environ["NPROC"] = str(chunks)  # XLA's number of threads on a CPU
        if is_x86() and not any(flag.startswith("--xla_cpu_max_isa=") for flag in flags):
            flags = [*flags, UNFUSED]
            os.environ["XLA_FLAGS"] = " ".join(flags)
    if FLAG not in [flag.split("=")[0] for flag in flags]:
        if started() and jax.default_backend() == "gpu":
            raise Refused(
                f"a deterministic run needs XLA's flag {FLAG}, and JAX has started its GPU "
                f"already: set XLA_FLAGS={FLAG}=true before Python starts, or start the run before "
                f"any other JAX call."
            )
        os.environ["XLA_FLAGS"] = " ".join([*flags, f"{FLAG}=true"])


def check_threads(chunks: int) -> None:
    """Raises `Refused` if JAX computes on a CPU that was started without what these chunks need.

    Args:
      chunks: as of `set_deterministic`.
    """
    if not (chunks and started() and jax.default_backend() == "cpu"):
        return
    found = os.environ.get("XLA_FLAGS", "")
    if os.environ.get("NPROC") != str(chunks) or (is_x86() and "--xla_cpu_max_isa=" not in found):
        raise Refused(
            f"reproducible {chunks} needs {chunks} threads and XLA's flag {UNFUSED}, and JAX has "
            f"started its CPU already: set NPROC={chunks} and XLA_FLAGS={UNFUSED} before Python "
            f"starts, or start the run before any other JAX call."
        )


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def is_deterministic() -> bool:
    """Whether XLA's flag is set in the environment."""
    return any(
        flag in (FLAG, f"{FLAG}=true", f"{FLAG}=1")
        for flag in os.environ.get("XLA_FLAGS", "").split()
    )


def started() -> bool:
    """Whether JAX has started a backend; flags that are set later have no effect."""
    return xla_bridge.backends_are_initialized()
