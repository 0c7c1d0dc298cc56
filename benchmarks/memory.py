"""Memory of a run that is fed for long, its worker processes included, by every kind of records: whether it grows.

    python benchmarks/memory.py [--steps 5000] [--only KIND ...]

The kinds are those of test_sources.py, and `jpeg`, files that are decoded as in feeding.py beside this. What counts is
resident memory, shared pages once for each process that holds them, in the first and in the last 1,000 steps.
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

SPAN, EVERY = 1_000, 10


def jpeg(root: Path) -> Pictures:
    write_pictures(root)
    return Pictures(batch=BATCH, records=Folder(folder=str(root)))


def measured(source: Source, steps: int, readers: int, workers: int) -> tuple[float, float]:
    """MiB in the first steps, and in the last."""
    found, processes = [], []
    with contextlib.closing(
        train_batches(source, range(steps), seed=0, batch=BATCH, threads=readers, workers=workers)
    ) as batches:
        for step, _ in enumerate(batches):
            processes = processes or [psutil.Process(), *psutil.Process().children()]
            if step % EVERY == 0:
                found.append(sum(each.memory_info().rss for each in processes) / 2**20)
    return float(np.mean(found[: SPAN // EVERY])), float(np.mean(found[-SPAN // EVERY :]))


def main() -> int:
    kinds = {"jpeg": jpeg, **KINDS}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, metavar="KIND")
    options, worst = parser.parse_args(), 0.0
    print(
        f"{'':10}{'2 threads':>28}{'2 processes':>31}\n{'':10}"
        + 2 * "   MiB first    last   change  "
        + "seconds"
    )
    for kind in options.only:
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"JAXBIG_CACHE": f"{folder}/cache", "TFDS_DATA_DIR": f"{folder}/prepared"}
            data, began = kinds[kind](Path(folder)), time.perf_counter()
            data.prepare()
            print(f"{kind:10}", end="")
            for readers, workers in ((2, 0), (1, 2)):
                first, last = measured(data.source("train"), options.steps, readers, workers)
                worst = max(worst, abs(last / first - 1))
                print(f"{first:12.1f}{last:8.1f}{last / first - 1:+9.2%}  ", end="", flush=True)
            print(f"{time.perf_counter() - began:7.0f}", flush=True)
    print(f"{'within' if worst < 0.02 else 'NOT within'} 2%")
    return worst >= 0.02


if __name__ == "__main__":
    sys.exit(main())
