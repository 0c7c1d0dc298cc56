"""Images per second of the data pipeline, decoding JPEG files to 224 x 224, compared with tf.data.

    python benchmarks/feeding.py [--rounds 5] [--tensorflow PYTHON]

tf.data does the same work in a separate process, in a new virtual environment with TensorFlow (or
with PYTHON), in two ways: resizing the whole image and then cropping, as jaxbig does, and decoding
only the crop. All read the same files, in turn, with one thread a core. Prefetched batches are not
counted. Processor time is the better measure if the machine has other work.
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

SIZE = 224
BATCH = 64
IMAGES = 600  # different files
AHEAD = 12  # batches that may be prefetched
MEASURED = 40  # batches
WHOLE = "tf.data"
MIDDLE = "tf.data, middle"
CORES = len(os.sched_getaffinity(0))
TENSORFLOW = """
import sys, time
import tensorflow as tf
folder, size, batch, ahead, measured, cores = sys.argv[1], *map(int, sys.argv[2:])
options = tf.data.Options()
options.threading.private_threadpool_size = cores
options.threading.max_intra_op_parallelism = 1
def whole(data):
    pixels = tf.io.decode_jpeg(data, channels=3)
    height, width = tf.unstack(tf.shape(pixels)[:2])
    scale = size / tf.minimum(height, width)
    sides = [tf.cast(side, tf.float64) * scale for side in (height, width)]
    sides = [tf.cast(tf.round(side), tf.int32) for side in sides]
    pixels = tf.image.resize(pixels, sides)
    return pixels[(sides[0] - size) // 2 :, (sides[1] - size) // 2 :][:size, :size]
def middle(data):  # decodes only the pixels that are needed; also possible for random crops
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
    images = files.map(lambda name: load(name, decode), tf.data.AUTOTUNE)
    batches = images.batch(batch).prefetch(tf.data.AUTOTUNE)
    reading = batches.with_options(options).as_numpy_iterator()
    for _ in range(2 * ahead):  # includes autotuning
        next(reading)
    started = time.perf_counter()
    cpu = time.process_time()
    for _ in range(measured):
        next(reading)
    seconds = time.perf_counter() - started
    cpu = time.process_time() - cpu
    print(seconds / batch / measured, cpu / batch / measured, flush=True)
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
    """The central square of each image."""

    def spec(self) -> Spec:
        pixels = jax.ShapeDtypeStruct((self.batch, SIZE, SIZE, 3), np.uint8)
        return {"inputs": pixels, "mask": jax.ShapeDtypeStruct((self.batch,), np.float32)}

    def read(self, record: Record) -> Example:
        pixels = decode(record["jpeg"], SIZE)
        top, left = ((side - SIZE) // 2 for side in pixels.shape[:2])
        return {"inputs": pixels[top : top + SIZE, left : left + SIZE], "mask": np.float32(1)}


def write_pictures(folder: Path) -> None:
    """Writes JPEG files of 500 x 375 pixels, random crops of scikit-learn's photographs."""
    photographs = sklearn.datasets.load_sample_images().images
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        photograph = photographs[number % len(photographs)]  # [427, 640, 3]
        top = generator.integers(0, photograph.shape[0] - 374)
        left = generator.integers(0, photograph.shape[1] - 499)
        crop = photograph[top : top + 375, left : left + 500]
        data = io.BytesIO()
        Image.fromarray(crop).save(data, "JPEG", quality=90)
        (folder / f"{number:04}.jpg").write_bytes(data.getvalue())


def ours(folder: Path, readers: int, workers: int) -> Result:
    """Measures jaxbig."""
    source = Pictures(batch=BATCH, records=Folder(folder=str(folder))).source("train")
    with contextlib.closing(
        train_batches(source, range(10**6), seed=0, batch=BATCH, threads=readers, workers=workers)
    ) as batches:
        for _ in range(AHEAD):
            next(batches)
        started = time.perf_counter()
        cpu = processor_seconds()
        for _ in range(MEASURED):
            next(batches)
        seconds = time.perf_counter() - started
        cpu = processor_seconds() - cpu
    return seconds / BATCH / MEASURED, cpu / BATCH / MEASURED


def processor_seconds() -> float:
    """Processor seconds of this process and its children."""
    children = [
        child.cpu_times()
        for child in psutil.Process().children()
        if child.name().startswith("python")
    ]
    return time.process_time() + sum(times.user + times.system for times in children)


@contextlib.contextmanager
def tensorflow_process(python: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that measures one round of tf.data for each line that it receives."""
    numbers = map(str, (SIZE, BATCH, AHEAD, MEASURED, CORES))
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [python, "-c", TENSORFLOW, str(folder), *numbers], text=True, **pipes
    )
    try:
        assert process.stdout and process.stdout.readline() == "ready\n", "TensorFlow did not start"
        yield process
    finally:
        process.kill()
        process.wait()


def theirs(process: Any, what: str) -> Result:
    """Measures tf.data."""
    process.stdin.write(what + "\n")
    process.stdin.flush()
    seconds, cpu = process.stdout.readline().split()
    return float(seconds), float(cpu)


def install(folder: Path) -> str:
    """Creates a virtual environment with TensorFlow; returns its Python."""
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
        help="a Python with TensorFlow; without it TensorFlow is installed in a temporary folder",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        write_pictures(pictures)
        python = options.tensorflow or install(Path(folder) / "venv")
        results: dict[str, list[Result]] = {"threads": [], "workers": [], WHOLE: [], MIDDLE: []}
        with tensorflow_process(python, pictures) as process:
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
        f"medians of {options.rounds} rounds on {CORES} cores; "
        f"load of the machine {os.getloadavg()[0]:.1f}"
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
