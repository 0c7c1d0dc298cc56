"""Records of TensorFlow Datasets by name, read without TensorFlow.

They stand prepared in the folder that TFDS_DATA_DIR names, or `~/tensorflow_datasets`. `jaxbig data prepare EXPERIMENT`
fetches and prepares them; nothing else asks the network.
"""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import logging
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder, registered

from jaxbig.data.core.cache import digest_once
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.records.tfds_builder import data_folder, prepare_whole
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
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
    """Any split of TFDS: `train`, `train[5%:]`, `train+validation`, `all`."""
    eval_split: str = "test"

    def builder(self) -> tfds.core.DatasetBuilder:
        """The data set where it stands; `Refused` if it does not, or cannot be read in any order."""
        root = data_folder()
        for features in sorted((root / self.name.split(":")[0]).rglob("features.json")):
            refuse_foreign_features(features)
        try:
            builder = read_only_builder.builder_from_files(self.name, data_dir=root)
        except registered.DatasetNotFoundError as error:
            raise Refused(
                f"data set {self.name} is not prepared in {root}: `jaxbig data prepare EXPERIMENT` fetches it, or set "
                f"TFDS_DATA_DIR to where it is; --smoke tries the experiment without it."
            ) from error
        for split in (self.train_split, self.eval_split):
            self.instructions(builder, split)
        if not builder.info.available_file_formats() & tfds.core.FileFormat.with_random_access():
            raise Refused(
                f"data set {self.name} in {builder.data_path} cannot be read in any order: move that folder away, and "
                f"`jaxbig data prepare EXPERIMENT` makes it anew."
            )
        return builder

    def instructions(self, builder: tfds.core.DatasetBuilder, split: str) -> list[Any]:
        """What TFDS reads of which files for a split; `Refused` if that is none or nothing."""
        there = ", ".join(
            f"{name} ({each.num_examples})" for name, each in builder.info.splits.items()
        )
        try:
            found = builder.info.splits[split].file_instructions
        except (ValueError, KeyError, AssertionError) as error:
            why = str(error).strip(chr(39) + chr(34)).split("See format at")[0].strip().rstrip(".")
            raise Refused(
                f"data set {self.name} has no split {split!r}, but {there} and what TFDS makes of them, such as "
                f"train[:90%] and train+test: {' '.join(why.split())}."
            ) from None
        if not sum(each.examples_in_shard if each.take == -1 else each.take for each in found):
            raise Refused(
                f"data set {self.name} has no record in {split!r}, of {there}: name a larger part."
            )
        return found

    def prepare(self) -> str:
        builder = self.builder()
        info, used = builder.info, (self.train_split, self.eval_split)
        sizes = [
            f"{name} {split.num_examples} examples {split.num_bytes} bytes"
            for name, split in info.splits.items()
        ]
        instructions = [self.instructions(builder, split) for split in used]
        if shared := overlap(*instructions):
            log.warning(
                "%d records of %s are in both %s (to train) and %s (to evaluate)",
                shared,
                self.name,
                *used,
            )
        files = {Path(each.filename) for each in itertools.chain(*instructions)}
        return f"{info.full_name} {', '.join(sizes)} {digest_once(sorted(files))}"

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, where `label` has some."""
        features: Any = self.builder().info.features
        label = dict(features.items()).get("label")
        return tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()

    def open(self, split: str) -> Sequence[Record]:
        builder, chosen = (
            self.builder(),
            {"train": self.train_split, "eval": self.eval_split}[split],
        )
        encoded = {  # images are decoded by who reads them, who knows how large they are wanted
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()  # type: ignore[union-attr]
            if isinstance(feature, tfds.features.Image)
        }
        records = builder.as_data_source(chosen, decoders=encoded)  # type: ignore[call-arg]
        return OpenSplit(records, f"{builder.data_path} {chosen}")  # type: ignore[return-value]

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
                f"TFDS knows no data set {self.name}"
                + (f"; the nearest is{near[0].split(chr(10))[0]}" if near else "")
            ) from None
        except ImportError as error:  # a few are made by TensorFlow alone
            raise Refused(
                f"data set {self.name} needs a library to be prepared ({str(error)[:200]}): prepare it elsewhere with "
                f"`tfds build {self.name} --file_format=array_record`, and copy it into {root}."
            ) from None


class OpenSplit:
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


def refuse_foreign_features(file: Path) -> None:
    """`Refused` where a prepared folder's `features.json` names features of other modules than TFDS's: TFDS imports
    what is named there, which runs it."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Refused(
            f"{file} cannot be read: {error}; move that folder away, or prepare it again."
        ) from error
    for name in feature_names(content):
        if not name.startswith("tensorflow_datasets."):
            raise Refused(
                f"{file} names a feature {name}, which is no part of TFDS, and whose module would be imported and run: "
                f"prepare the data set with TFDS's own features."
            )


def feature_names(value: Any) -> Iterator[str]:
    """The classes that a `features.json` names, anywhere in it."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(each, dict | list):
            yield from feature_names(each)
        elif (
            key in ("pythonClassName", "type") and isinstance(each, str) and "." in each
        ):  # since TFDS 4.4, and before
            yield each


def overlap(one: list[Any], other: list[Any]) -> int:
    """How many records two lists of file instructions share."""

    def spans(instructions: list[Any]) -> Iterator[tuple[str, int, int]]:
        for each in instructions:
            end = each.examples_in_shard if each.take == -1 else each.skip + each.take
            yield str(each.filename), each.skip, end

    there: dict[str, list[tuple[int, int]]] = {}
    for name, start, end in spans(other):
        there.setdefault(name, []).append((start, end))
    return sum(
        max(0, min(end, other_end) - max(start, other_start))
        for name, start, end in spans(one)
        for other_start, other_end in there.get(name, [])
    )


def reachable(host: str) -> bool:
    """Whether a host answers within seconds; TFDS itself tries for many minutes."""
    try:
        socket.create_connection((host, 443), timeout=SECONDS).close()
    except OSError:
        return False
    return True
