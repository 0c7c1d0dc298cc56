"""Keeps compiled programs on disk, so that a run that resumes does not compile again."""

import contextlib
import functools
import hashlib
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock
import jax

log = logging.getLogger("jaxbig")
LARGEST = 4 * 2**30
"""Bytes of the folder, beyond which what was used longest ago is removed."""
SHORTEST = 0.3
"""Seconds of a compilation that is worth keeping."""
JAX_SHORTEST = 1.0
"""The same by JAX's default."""
LOCK = ".lockfile"
"""JAX's own."""
HIT = "/jax/compilation_cache/cache_hits"
"""JAX's event of a program that was not compiled again."""
DAMAGED = re.compile(
    r"Error reading persistent compilation cache entry for .*: "
    r"(error|ZstdError|JaxRuntimeError|XlaRuntimeError): "
)
"""JAX's warning of a program that cannot be unpacked or loaded."""


@functools.cache
def use_compilation_cache() -> None:
    """Lets JAX keep what it compiles in `compiled` of JAXBIG_CACHE, once a process.

    Not if the user has given a folder or turned JAX's cache off. Not for several CPU devices: XLA
    does not store the order of their collectives, so that a program of theirs deadlocks once it is
    loaded (jax 0.10.2). And not for several processes, of which the first alone writes: where the
    others do not see its folder, some load a program and others compile it. A folder that cannot be
    used costs the cache alone.

    Call it when JAX has started its devices.
    """
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    deadlocks = jax.default_backend() == "cpu" and jax.device_count() > 1
    if chosen or not enabled or deadlocks or jax.process_count() > 1:
        return
    try:
        folder = cache_folder()
        remove_unfinished(folder)
    except (OSError, RuntimeError, filelock.Timeout) as error:
        log.warning("compiled programs are not kept: %s; set JAXBIG_CACHE to another folder", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs  # type: ignore[attr-defined]
    if seconds == JAX_SHORTEST:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    if jax.config.jax_compilation_cache_max_size < 0:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_max_size", LARGEST)


def cache_folder() -> Path:
    """The user's own folder for programs of this jax and this kind of machine; makes it.

    Raises:
      OSError: it cannot be made, or others can write to it: a program that they put there would
        run.
      RuntimeError: this user has no home.
    """
    root = Path(os.environ.get("JAXBIG_CACHE") or "~/.cache/jaxbig").expanduser().absolute()
    folder = root / "compiled" / f"{os.getuid()}-{machine()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=stat.S_IRWXU)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} is another user's, or others can write to it")
    return folder


def machine() -> str:
    """Digits that differ between versions of jax, instruction sets, and numbers of cores: what
    XLA compiles for a CPU depends on them, and JAX's own key does not have them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    known = [jax.__version__, os.uname().machine, str(cores), os.environ.get("NPROC", "")]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process has left half-written: JAX would neither load nor replace it.

    A program that is complete has a file with the time of its last use beside it.
    """
    with filelock.FileLock(folder / LOCK, timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                program.unlink()


@contextlib.contextmanager
def watch_cache() -> Iterator[list[str]]:
    """A list that gets an item for each program that is loaded and not compiled.

    If one is damaged, which JAX compiles but does not replace, all of the user's own folder are
    removed.
    """
    hits: list[str] = []

    def listen(event: str, **_: str | int) -> None:
        if event == HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)
        for each in caught:
            if not (DAMAGED.match(str(each.message)) and remove_all()):
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def remove_all() -> bool:
    """Removes all programs of the user's own folder; False if another one is used, or it fails."""
    try:
        folder = cache_folder()
        if str(folder) != jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            return False
        with filelock.FileLock(folder / LOCK, timeout=10):
            for program in folder.glob("*-cache"):
                program.unlink(missing_ok=True)
    except (OSError, RuntimeError, filelock.Timeout):
        return False
    log.warning("a kept program was damaged; removed all of %s", folder)
    return True
