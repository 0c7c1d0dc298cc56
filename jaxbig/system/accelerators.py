"""Keeps JAX from starting libtpu on a machine without a TPU, which prints a page of warnings."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import jax

GOOGLE = "0x1ae0"
"""The vendor of TPUs on the PCI bus."""
OTHER = ("nvidia*", "dxg", "kfd")
"""Files in /dev of NVIDIA's and AMD's GPUs."""
TPU = ("accel*", "vfio/[0-9]*")
"""Files in /dev of TPUs."""
SET_BY_JAX = {"TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY"}
"""Environment variables that importing JAX sets where libtpu is installed."""


def skip_absent_tpu() -> None:
    """Makes JAX use the CPU where libtpu is installed and neither a TPU nor a GPU is there.

    Call it before any device is used. It is for this process alone: a job that it submits may run
    on a machine with a TPU.
    """
    if (
        importlib.util.find_spec("libtpu") is not None
        and not jax.config.values["jax_platforms"]
        and not may_have_accelerator(os.environ)
    ):
        jax.config.update("jax_platforms", "cpu")


def may_have_accelerator(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether anything of this machine hints at a TPU or a GPU.

    Args:
      environment: environment variables; libtpu's own mean that there is a TPU.
      root: the root of the file system.
    """
    named = {name for name in environment if name.startswith("TPU_")} - SET_BY_JAX
    if "JAX_FORCE_TPU_INIT" in environment or named:
        return True
    if any(file for pattern in (*TPU, *OTHER) for file in (root / "dev").glob(pattern)):
        return True
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return any(file.read_text().strip() == GOOGLE for file in vendors)
