"""How tests compile: with few optimizations, and in subprocesses each program once."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax

# XLA:CPU's emitters of fused loops take half of the time of compiling hastily. The older ones are
# in jax 0.10 and ignored where they are gone, as in jax 0.12.
OLD_EMITTERS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
# the same for a process that a test starts
HASTY_BITS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # where bits over processes are compared
HASTY = {**HASTY_BITS, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {OLD_EMITTERS}".strip()}
# A compilation cache for runs of several processes of one device, which have none by default: they
# are not those that deadlock (system/compilation_cache.py). One folder for each worker: two
# processes at once could read what is half written.
COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": os.path.join(
        os.environ["JAXBIG_TEST_DATA"], "compiled", os.environ.get("PYTEST_XDIST_WORKER", "alone")
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}


@contextlib.contextmanager
def new_emitters() -> Iterator[None]:
    """What `lowered.compile()` compiles has the emitters of a run."""
    plain = jax.stages.Lowered.compile

    def compile_(self: jax.stages.Lowered, options: Any = None) -> jax.stages.Compiled:
        return plain(self, {"xla_backend_extra_options": "", **(options or {})})

    with mock.patch.object(jax.stages.Lowered, "compile", compile_):
        yield


@contextlib.contextmanager
def fully() -> Iterator[None]:
    """What `lowered.compile()` compiles is the program of a run, with all optimizations."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        with new_emitters():
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
