"""Memory of a run that is fed for long, its worker processes included: whether it grows.

    python tests/benchmarks/memory.py [--steps 5000]

JPEG files are decoded as in feeding.py beside this. What counts is resident memory, shared pages once for each process
that holds them, in steps 500 to 1,500 and in the last 1,000.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from feeding import Folder, Pictures, write_pictures

from jaxbig.data.stream import train_batches

BATCH, WARM, SPAN, EVERY = 8, 500, 1_000, 10


def resident() -> int:
    """Bytes of this process and those that it has started."""
    process = psutil.Process()
    return sum(each.memory_info().rss for each in (process, *process.children()))


def measured(folder: Path, steps: int, readers: int, workers: int) -> tuple[float, float, float]:
    """MiB in the first steps after the warm ones, and in the last; seconds."""
    source = Pictures(batch=BATCH, records=Folder(folder=str(folder))).source("train")
    found, began = [], time.perf_counter()
    with contextlib.closing(train_batches(source, 0, 0, steps, BATCH, readers, workers=workers)) as batches:
        for step, _ in enumerate(batches):
            if step % EVERY == 0:
                found.append(resident() / 2**20)
    first, last = found[WARM // EVERY : (WARM + SPAN) // EVERY], found[-SPAN // EVERY :]
    return float(np.mean(first)), float(np.mean(last)), time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000)
    steps, worst = parser.parse_args().steps, 0.0
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        print("readers workers   MiB first    MiB last   change   seconds")
        for readers, workers in ((0, 0), (2, 0), (1, 2), (2, 4)):
            first, last, seconds = measured(Path(folder), steps, readers, workers)
            worst = max(worst, abs(last / first - 1))
            print(
                f"{readers:7} {workers:7} {first:11.1f} {last:11.1f} {last / first - 1:+8.2%} {seconds:9.0f}",
                flush=True,
            )
    print(f"{'within' if worst < 0.02 else 'NOT within'} 2%")
    return worst >= 0.02


if __name__ == "__main__":
    sys.exit(main())
