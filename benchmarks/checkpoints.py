"""Compares a checkpoint's save and restore, with its digests, with Orbax's alone.

    python benchmarks/checkpoints.py [--megabytes 1500] [--rounds 3] [--folder FOLDER]

A round saves one state of random numbers both ways and restores both. It prints, as medians over
the rounds: seconds for which the loop is blocked, until the save is durable, and of a restore, and
the peak of host memory above that before the save. The files are read from the pages that the
system has kept of them.
"""

import argparse
import ctypes
import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxbig.checkpoint.manager import CheckpointManager

LEAF = (16, 1024, 160)  # 10 MiB of float32


def make_state(megabytes: int) -> dict[str, jax.Array]:
    count = max(megabytes * 10**6 // (4 * int(np.prod(LEAF))), 1)
    draw = jax.jit(lambda key: jax.random.normal(key, LEAF))
    return {f"layer_{i}": draw(jax.random.key(i)) for i in range(count)}


def peak_mib(act: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and by how much the process's memory grew at its peak, in MiB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    before = memory_mib("VmRSS")
    result = act()
    return result, memory_mib("VmHWM") - before


def memory_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def timed(start: Callable[[], Callable[[], Any]]) -> dict[str, float]:
    """Seconds until a save returns, and until what it returns has waited for its end."""

    def act() -> tuple[float, float]:
        began = time.perf_counter()
        wait = start()
        blocked = time.perf_counter() - began
        wait()
        return blocked, time.perf_counter() - began

    (blocked, durable), peak = peak_mib(act)
    return {"blocked, s": blocked, "durable, s": durable, "host memory, MiB": peak}


def one_round(state: Any, abstract: Any, folder: Path) -> dict[str, dict[str, float]]:
    found = {}
    checkpoints = CheckpointManager(folder / "jaxbig")

    def save() -> Callable[[], Any]:
        checkpoints.save(1, state, {})
        return checkpoints.wait

    saves = {"Orbax": lambda: ocp.save_async(str(folder / "orbax"), state).result, "jaxbig": save}
    restores = {
        "Orbax": lambda: ocp.load(str(folder / "orbax"), abstract),
        "jaxbig": lambda: checkpoints.restore(abstract),
    }
    for name in saves:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found[name] = timed(saves[name])
        began = time.perf_counter()
        restored = restores[name]()
        jax.block_until_ready(restored if name == "Orbax" else restored.state)
        found[name]["restore, s"] = time.perf_counter() - began
    checkpoints.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    state = jax.block_until_ready(make_state(options.megabytes))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rounds = [one_round(state, abstract, Path(folder, "run")) for _ in range(options.rounds)]
    columns = list(rounds[0]["jaxbig"])
    print(f"{'':20}" + "".join(f"{name:>18}" for name in columns))
    for way in rounds[0]:
        medians = [float(np.median([each[way][name] for each in rounds])) for name in columns]
        print(f"{way:20}" + "".join(f"{value:18.2f}" for value in medians))


if __name__ == "__main__":
    main()
