"""Reads the versions, compiler flags, JAX configuration and devices that a run depends on.

All processes of a run must have the same; `run.json` records them.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax

from jaxbig.errors import Refused

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "NCCL_ALGO", "NCCL_PROTO")
"""Environment variables that change what is compiled, computed or communicated."""
RANDOM = (
    "jax_default_prng_impl",
    "jax_enable_custom_prng",
    "jax_enable_x64",
    "jax_random_seed_offset",
    "jax_threefry_partitionable",
)
"""Configuration that changes the random numbers of a seed: another value makes another run."""
PROGRAM = (
    "jax_compiler_enable_remat_pass",
    "jax_debug_infs",
    "jax_debug_nans",
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
    "jax_enable_checks",
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_effort",
    "jax_optimization_level",
    "jax_softmax_custom_jvp",
    "jax_threefry_gpu_kernel_lowering",
    "jax_use_shardy_partitioner",
)
"""Configuration that changes the compiled program, and so the rounding."""
NEEDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "jax_numpy_dtype_promotion": (
        ("standard",),
        "layers, losses and optimizers compute with mixed dtypes",
    ),
    "jax_disable_jit": (
        (False,),
        "a step is one compiled program over all devices; `jaxbig replay` runs a bad step "
        "operation by operation",
    ),
    "jax_no_tracing": ((False,), "each process traces and compiles its own step"),
    "jax_transfer_guard": (
        (None, "allow", "log"),
        "batches, seeds and schedules are copied to the devices as needed",
    ),
}
"""The values of JAX's configuration that a run needs, and why."""
DRIVER = Path("/proc/driver/nvidia/version")


def check() -> None:
    """Raises `Refused` if JAX's configuration does not allow a run."""
    for name, (allowed, why) in NEEDED.items():
        value = jax.config.values.get(name, allowed[0])
        if value not in allowed:
            raise Refused(f"{name.upper()}={value}: {why}: unset it.")


def init_compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str]:
    """The compiler's options for the program of the first parameters, which runs once.

    On a CPU, LLVM's first level of optimization compiles random numbers in a third of the time, to
    the same bits.
    """
    if (
        mesh.devices.flat[0].platform != "cpu"
        or jax.config.values["jax_disable_most_optimizations"]
    ):
        return {}
    return {"xla_backend_optimization_level": "1"}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run's numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def flags() -> dict[str, dict[str, str]]:
    """The flags set in each variable of `FLAGS`, without those that only write dumps."""
    pairs = {
        name: re.findall(r"(\S+?)(?:=(\S*))?(?=\s|$)", os.environ.get(name, "")) for name in FLAGS
    }
    shown = {
        name: {flag: value for flag, value in sorted(each) if "dump" not in flag}
        for name, each in pairs.items()
    }
    return {name: each for name, each in shown.items() if each}


def config() -> dict[str, Any]:
    """JAX's configuration that changes numbers or programs; plain JSON."""
    values = jax.config.values
    found = [(name, values[name]) for name in (*RANDOM, *PROGRAM) if name in values]
    return {
        name: value if isinstance(value, bool | int | float | None) else str(value)
        for name, value in found
    }


def devices() -> dict[str, Any]:
    """This process's devices and their driver; starts JAX's backend."""
    local = jax.local_devices()
    version = " ".join(getattr(local[0].client, "platform_version", "").split())
    driver = ""
    if local[0].platform == "gpu" and DRIVER.exists():
        driver = DRIVER.read_text().splitlines()[0]
    return {
        "number of devices": len(local),
        "device kind": local[0].device_kind,
        "platform_version": version,
        **({"driver": driver} if driver else {}),
    }


def git_commit() -> str | None:
    """The commit of the current folder, with `-dirty` if files differ; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
