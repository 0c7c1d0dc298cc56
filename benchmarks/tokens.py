"""Tokens a second from packed rows, against what `pytext_transformer` takes on this machine.

python benchmarks/tokens.py
"""

import statistics
import sysconfig
import time
from pathlib import Path

from jaxbig.config.discover import load
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.data.records.text_files import TextFiles
from jaxbig.data.text import Tokens
from jaxbig.tools.benchmark import bench
from jaxbig.tracking.console import Screen

STEPS, ROUNDS = 300, 5


def main() -> None:
    experiment, library = load("pytext_transformer"), Path(sysconfig.get_paths()["stdlib"])
    size = {"batch": experiment.data.batch, "length": experiment.data.length}  # type: ignore[attr-defined]
    data = Tokens(records=TextFiles(files=str(library / "*" / "*.py")), packed=True, **size)
    print(data.prepare())
    source, rates = data.source("train"), []
    for number in range(ROUNDS):
        began = time.perf_counter()
        for step in range(STEPS):
            train_batch(source, step, seed=number, batch=data.batch)
        rates.append(STEPS * data.batch * data.length / (time.perf_counter() - began))
    taken = bench(experiment, 20, Screen(json=True))["tokens_per_second"]
    read = statistics.median(rates)
    print(
        f"read {read:,.0f} tokens a second on one thread, taken {taken:,.0f}: {read / taken:.0f} times"
    )


if __name__ == "__main__":
    main()
