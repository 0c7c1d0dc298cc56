"""Images a second that a run can be fed: JPEG files decoded, scaled and cut to 224 x 224, against tf.data.

    python benchmarks/feeding.py [--rounds 5] [--tensorflow PYTHON]

tf.data does the same work in a process of its own, of a virtual environment that is made for it (or that PYTHON is of).
It does so twice: whole images scaled and then cut, as jaxbig does, and decoding no more than the cut. All read the same
files, in turn, with as many threads as there are cores; a rate is of the batches after those that were ahead, so of
reading alone. Processor time tells more where others use the machine.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
import sklearn.datasets
from PIL import Image

from jaxbig.data.core.dataset import Record, Records, Spec
from jaxbig.data.core.examples import Example, Examples
from jaxbig.data.pipeline.loader import train_batches
from jaxbig.data.transforms.jpeg import decode

SIZE, BATCH, IMAGES, AHEAD, MEASURED = 224, 64, 600, 12, 40
WHOLE, MIDDLE = "tf.data", "tf.data, middle"
CORES = len(os.sched_getaffinity(0))
TENSORFLOW = """
import sys, time
import tensorflow as tf
folder, size, batch, ahead, measured, cores = sys.argv[1], *map(int, sys.argv[2:])
options = tf.data.Options()
options.threading.private_threadpool_size, options.threading.max_intra_op_parallelism = cores, 1
def whole(data):
    pixels = tf.io.decode_jpeg(data, channels=3)
    height, width = tf.unstack(tf.shape(pixels)[:2])
    scale = size / tf.minimum(height, width)
    sides = [tf.cast(tf.round(tf.cast(side, tf.float64) * scale), tf.int32) for side in (height, width)]
    pixels = tf.image.resize(pixels, sides)
    return pixels[(sides[0] - size) // 2 :, (sides[1] - size) // 2 :][:size, :size]
def middle(data):  # no pixels but those that are needed; training's random windows allow that too
    height, width = tf.unstack(tf.io.extract_jpeg_shape(data)[:2])
    side = tf.minimum(height, width)
    window = tf.stack([(height - side) // 2, (width - side) // 2, side, side])
    return tf.image.resize(tf.io.decode_and_crop_jpeg(data, window, channels=3), (size, size))
def load(name, decode):
    return tf.ensure_shape(tf.cast(decode(tf.io.read_file(name)), tf.uint8), (size, size, 3))
files = tf.data.Dataset.list_files(folder + "/*.jpg").cache().shuffle(1000).repeat()
print("ready", flush=True)
for line in sys.stdin:
    decode = {"whole": whole, "middle": middle}[line.strip()]
    batches = files.map(lambda name: load(name, decode), tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE)
    reading = batches.with_options(options).as_numpy_iterator()
    for _ in range(2 * ahead):  # autotuning too takes its time
        next(reading)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(measured):
        next(reading)
    print((time.perf_counter() - began) / batch / measured, (time.process_time() - cpu) / batch / measured, flush=True)
    del reading
"""
Result = tuple[float, float]
"""Seconds an image, and processor seconds an image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(Records):
    """JPEG files of a folder."""

    folder: str

    def open(self, split: str) -> Sequence[Record]:
        return Files(sorted(map(str, Path(self.folder).glob("*.jpg"))))


class Files(Sequence[Record]):
    def __init__(self, names: list[str]):
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Record:  # type: ignore[override]
        return {"jpeg": Path(self.names[index]).read_bytes()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures(Examples):
    """The middle of each."""

    def spec(self) -> Spec:
        pixels = jax.ShapeDtypeStruct((self.batch, SIZE, SIZE, 3), np.uint8)
        return {"inputs": pixels, "mask": jax.ShapeDtypeStruct((self.batch,), np.float32)}

    def read(self, record: Record) -> Example:
        pixels = decode(record["jpeg"], SIZE)
        top, left = ((side - SIZE) // 2 for side in pixels.shape[:2])
        return {"inputs": pixels[top : top + SIZE, left : left + SIZE], "mask": np.float32(1)}


def write_pictures(folder: Path) -> None:
    """JPEG files of 500 x 375 pixels, cut at random from scikit-learn's photographs."""
    photographs, draw = sklearn.datasets.load_sample_images().images, np.random.default_rng(0)
    for number in range(IMAGES):
        photograph = photographs[number % len(photographs)]  # [427, 640, 3]
        top, left = (
            draw.integers(0, photograph.shape[0] - 374),
            draw.integers(0, photograph.shape[1] - 499),
        )
        data = io.BytesIO()
        Image.fromarray(photograph[top : top + 375, left : left + 500]).save(
            data, "JPEG", quality=90
        )
        (folder / f"{number:04}.jpg").write_bytes(data.getvalue())


def ours(folder: Path, readers: int, workers: int) -> Result:
    """jaxbig's."""
    source = Pictures(batch=BATCH, records=Folder(folder=str(folder))).source("train")
    with contextlib.closing(
        train_batches(source, range(10**6), seed=0, batch=BATCH, threads=readers, workers=workers)
    ) as batches:
        for _ in range(AHEAD):
            next(batches)
        began, cpu = time.perf_counter(), processor()
        for _ in range(MEASURED):
            next(batches)
        return (time.perf_counter() - began) / BATCH / MEASURED, (
            processor() - cpu
        ) / BATCH / MEASURED


def processor() -> float:
    """Processor seconds of this process and those that it has started."""
    children = [
        each.cpu_times() for each in psutil.Process().children() if each.name().startswith("python")
    ]
    return time.process_time() + sum(times.user + times.system for times in children)


@contextlib.contextmanager
def rival(python: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that measures a round of tf.data for each line it is sent."""
    numbers = map(str, (SIZE, BATCH, AHEAD, MEASURED, CORES))
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [python, "-c", TENSORFLOW, str(folder), *numbers], text=True, **pipes
    )
    try:
        assert process.stdout and process.stdout.readline() == "ready\n", "TensorFlow did not begin"
        yield process
    finally:
        process.kill()
        process.wait()


def theirs(process: Any, what: str) -> Result:
    """tf.data's."""
    process.stdin.write(what + "\n")
    process.stdin.flush()
    seconds, cpu = process.stdout.readline().split()
    return float(seconds), float(cpu)


def install(folder: Path) -> str:
    """A Python with TensorFlow in a virtual environment there."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "tensorflow-cpu"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--tensorflow",
        default="",
        help="a Python that has it; else it is installed in a new folder",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        write_pictures(pictures)
        python = options.tensorflow or install(Path(folder) / "venv")
        results: dict[str, list[Result]] = {"threads": [], "workers": [], WHOLE: [], MIDDLE: []}
        with rival(python, pictures) as process:
            for number in range(options.rounds):
                results["threads"].append(ours(pictures, CORES, 0))
                results[WHOLE].append(theirs(process, "whole"))
                results["workers"].append(ours(pictures, 1, CORES))
                results[MIDDLE].append(theirs(process, "middle"))
                print(
                    f"round {number + 1}:",
                    {n: f"{1 / r[-1][0]:.0f}/s" for n, r in results.items()},
                    file=sys.stderr,
                )
    print(
        f"medians of {options.rounds} rounds on {CORES} cores; load of the machine {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':16}  images/s x {WHOLE}  x {MIDDLE}    processor ms/image x {WHOLE}  x {MIDDLE}")
    for name, found in results.items():
        seconds, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        faster = [
            statistics.median(
                b[which] / a[which] for a, b in zip(found, results[other], strict=True)
            )
            for which in (0, 1)
            for other in (WHOLE, MIDDLE)
        ]
        print(f"{name:16}{1 / seconds:10.0f}{faster[0]:10.2f}{faster[1]:18.2f}", end="")
        print(f"{cpu * 1e3:22.2f}{faster[2]:10.2f}{faster[3]:18.2f}")


if __name__ == "__main__":
    main()
