"""Records of TensorFlow Datasets by name, read without TensorFlow.

They stand prepared in the folder that TFDS_DATA_DIR names, or `~/tensorflow_datasets`. `jaxbig data prepare EXPERIMENT`
fetches and prepares them; nothing else asks the network.
"""

import contextlib
import dataclasses
import importlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder, registered

from jaxbig.data.base import Record, Records
from jaxbig.data.prepared import data_folder, prepare_whole
from jaxbig.errors import Refused

HOST, SECONDS = "storage.googleapis.com", 10
"""Where TFDS asks first, and how long it may take to find it."""
ELSEWHERE = ("tensorflow_datasets.text", "tensorflow_datasets.translate")
"""Modules whose data sets TFDS does not find before they are imported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(Records):
    """A data set of the catalogue, in a format that is read in any order (array_record)."""

    name: str = dataclasses.field(kw_only=False)
    """As TFDS has it: `imagenet2012`, `glue/sst2`, `wmt14_translate/de-en`, with `:1.0.0` for a version."""
    train_split: str = "train"
    """Any split of TFDS, such as `train[5%:]`."""
    eval_split: str = "test"

    def builder(self) -> tfds.core.DatasetBuilder:
        """The data set where it stands; `Refused` if it does not, or cannot be read in any order."""
        root = data_folder()
        try:
            builder = read_only_builder.builder_from_files(self.name, data_dir=root)
        except registered.DatasetNotFoundError as error:
            raise Refused(
                f"data set {self.name} is not prepared in {root}: `jaxbig data prepare EXPERIMENT` fetches it, or set "
                f"TFDS_DATA_DIR to where it is; --smoke tries the experiment without it."
            ) from error
        for split in (self.train_split, self.eval_split):
            if split.split("[")[0] not in builder.info.splits:
                raise Refused(f"data set {self.name} has no split {split!r}, but {', '.join(builder.info.splits)}.")
        if not builder.info.available_file_formats() & tfds.core.FileFormat.with_random_access():
            raise Refused(
                f"data set {self.name} in {builder.data_path} cannot be read in any order: move that folder away, and "
                f"`jaxbig data prepare EXPERIMENT` makes it anew."
            )
        return builder

    def prepare(self) -> str:
        info = self.builder().info
        sizes = [f"{name} {split.num_examples} examples {split.num_bytes} bytes" for name, split in info.splits.items()]
        return f"{info.full_name} {', '.join(sizes)}"

    def open(self, split: str) -> Sequence[Record]:
        builder, chosen = self.builder(), {"train": self.train_split, "eval": self.eval_split}[split]
        encoded = {  # images are decoded by who reads them, who knows how large they are wanted
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()  # type: ignore[union-attr]
            if isinstance(feature, tfds.features.Image)
        }
        return Opened(builder.as_data_source(chosen, decoders=encoded), f"{builder.data_path} {chosen}")  # type: ignore[call-arg]

    def fetch(self) -> None:
        """Downloads and prepares what is not there: one process does, others wait; what was half-way is begun anew."""
        with contextlib.suppress(Refused):
            self.builder()
            return
        root = data_folder()
        root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / f"{self.name.replace('/', '_').replace(':', '_')}.lock"):
            builder = self._catalogued(root)
            if not builder.is_prepared():
                if not reachable(HOST):
                    raise Refused(
                        f"data set {self.name} is not in {root} and {HOST} cannot be reached: prepare it on a machine "
                        f"with a network and copy that folder, or set TFDS_DATA_DIR to where it is."
                    )
                prepare_whole(builder)

    def _catalogued(self, root: Path) -> tfds.core.DatasetBuilder:
        for module in ELSEWHERE:
            importlib.import_module(module)
        try:
            return tfds.builder(self.name, data_dir=root, file_format="array_record")
        except registered.DatasetNotFoundError as error:
            near = str(error).split("Did you mean:")[1:]
            raise Refused(
                f"TFDS knows no data set {self.name}" + (f"; the nearest is{near[0].split(chr(10))[0]}" if near else "")
            ) from None
        except ImportError as error:  # a few are made by TensorFlow alone
            raise Refused(
                f"data set {self.name} needs a library to be prepared ({str(error)[:200]}): prepare it elsewhere with "
                f"`tfds build {self.name} --file_format=array_record`, and copy it into {root}."
            ) from None


class Opened:
    """An opened split: TFDS's source, whose records can be named."""

    def __init__(self, records: Any, name: str):
        self.records, self.name = records, name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __getitems__(self, indices: list[int]) -> list[Record]:
        return self.records.__getitems__(indices)

    def where(self, index: int) -> str:
        return f"{self.name} record {index}"


def reachable(host: str) -> bool:
    """Whether a host answers within seconds; TFDS itself tries for many minutes."""
    try:
        socket.create_connection((host, 443), timeout=SECONDS).close()
    except OSError:
        return False
    return True
