"""Checks that the memory of long data loading does not grow, for every kind of records.

    python benchmarks/memory.py [--steps 5000] [--only KIND ...]

The kinds are those of test_sources.py, and `jpeg`, files that are decoded as in feeding.py. It
measures the resident memory of all processes, workers included, in the first and in the last 1,000
steps; shared pages count once for each process that maps them.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from feeding import Folder, Pictures, write_pictures

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from unit.data.test_sources import BATCH, KINDS

from jaxbig.data.core.dataset import Source
from jaxbig.data.pipeline.loader import train_batches

SPAN = 1_000  # steps over which memory is averaged
SAMPLE_EVERY = 10  # steps


def jpeg(root: Path) -> Pictures:
    write_pictures(root)
    return Pictures(batch=BATCH, records=Folder(folder=str(root)))


def measured(source: Source, steps: int, readers: int, workers: int) -> tuple[float, float]:
    """Mean MiB in the first steps, and in the last."""
    found: list[float] = []
    processes: list[psutil.Process] = []
    with contextlib.closing(
        train_batches(source, range(steps), seed=0, batch=BATCH, threads=readers, workers=workers)
    ) as batches:
        for step, _ in enumerate(batches):
            processes = processes or [psutil.Process(), *psutil.Process().children()]
            if step % SAMPLE_EVERY == 0:
                found.append(sum(process.memory_info().rss for process in processes) / 2**20)
    samples = SPAN // SAMPLE_EVERY
    return float(np.mean(found[:samples])), float(np.mean(found[-samples:]))


def main() -> int:
    kinds = {"jpeg": jpeg, **KINDS}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, metavar="KIND")
    options = parser.parse_args()
    worst = 0.0
    print(
        f"{'':10}{'2 threads':>28}{'2 processes':>31}\n{'':10}"
        + 2 * "   MiB first    last   change  "
        + "seconds"
    )
    for kind in options.only:
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"JAXBIG_CACHE": f"{folder}/cache", "TFDS_DATA_DIR": f"{folder}/prepared"}
            data = kinds[kind](Path(folder))
            started = time.perf_counter()
            data.prepare()
            print(f"{kind:10}", end="")
            for readers, workers in ((2, 0), (1, 2)):
                first, last = measured(data.source("train"), options.steps, readers, workers)
                worst = max(worst, abs(last / first - 1))
                print(f"{first:12.1f}{last:8.1f}{last / first - 1:+9.2%}  ", end="", flush=True)
            print(f"{time.perf_counter() - started:7.0f}", flush=True)
    print(f"{'within' if worst < 0.02 else 'NOT within'} 2%")
    return worst >= 0.02


if __name__ == "__main__":
    sys.exit(main())
