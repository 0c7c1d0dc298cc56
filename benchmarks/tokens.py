"""Tokens per second read from packed rows, compared with training `pytext_transformer`.

python benchmarks/tokens.py
"""

import statistics
import sysconfig
import time
from pathlib import Path
from typing import Any

from jaxbig.config.discover import load
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.data.records.text_files import TextFiles
from jaxbig.data.text import Tokens
from jaxbig.tools.benchmark import bench
from jaxbig.tracking.console import Screen

STEPS = 300  # a round
ROUNDS = 5


def main() -> None:
    experiment = load("pytext_transformer")
    library = Path(sysconfig.get_paths()["stdlib"])
    trained_on: Any = experiment.data
    data = Tokens(
        records=TextFiles(files=str(library / "*" / "*.py")),
        packed=True,
        batch=trained_on.batch,
        length=trained_on.length,
    )
    print(data.prepare())
    source = data.source("train")
    rates = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        for step in range(STEPS):
            train_batch(source, step, seed=number, batch=data.batch)
        rates.append(STEPS * data.batch * data.length / (time.perf_counter() - started))
    trained = bench(experiment, 20, Screen(json=True).with_log())["tokens_per_second"]
    read = statistics.median(rates)
    print(
        f"one thread reads {read:,.0f} tokens a second, training takes {trained:,.0f}: "
        f"{read / trained:.0f} times"
    )


if __name__ == "__main__":
    main()
