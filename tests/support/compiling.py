"""How tests compile: with few optimizations, and in subprocesses each program once."""

import functools
import os
from typing import Any

import jax
from jax._src import compiler

HASTY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # the same for a process that a test starts
# A compilation cache for the processes that tests start: the first run of a program compiles it,
# later ones load it. Only for runs on one device: XLA:CPU does not store the order of collectives,
# so that a program for several devices deadlocks once it is loaded (digits_rnn over 2x2x2, three
# times of three, jax 0.10.2). The tests' own process has eight devices. One folder for each worker:
# two processes at once could read what is half written.
COMPILED = {
    "JAX_COMPILATION_CACHE_DIR": os.path.join(
        os.environ["JAXBIG_TEST_DATA"], "compiled", os.environ.get("PYTEST_XDIST_WORKER", "alone")
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}


def emit_fusions_directly() -> None:
    """Makes XLA:CPU go from a fusion to LLVM without MLIR, which saves a third of the compile time.

    No part of JAX's public interface sets this for some programs only. With all optimizations
    nothing changes, nor from JAX 0.11 on, whose XLA has no such option.
    """
    if jax.__version_info__ >= (0, 11):
        return
    plain = compiler.get_compile_options

    @functools.wraps(plain)
    def options(*given: Any, **named: Any) -> Any:
        made = plain(*given, **named)
        if jax.config.read("jax_disable_most_optimizations"):
            override = ("xla_cpu_use_fusion_emitters", False)
            made.env_option_overrides = [*made.env_option_overrides, override]
        return made

    compiler.get_compile_options = options
