"""Records of a TensorFlow Datasets data set by name, downloaded once, read without TensorFlow.

They are stored in the folder in TFDS_DATA_DIR, or `~/tensorflow_datasets`. Only `jaxbig data
prepare EXPERIMENT` uses the network: it fetches and prepares them.
"""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import logging
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder, registered

from jaxbig.data.core.cache import digest_once
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.records.tfds_builder import data_folder, prepare_once
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
HOST = "storage.googleapis.com"
"""The host that TFDS connects to first."""
TEST = "test"
"""The split of TFDS for a final test, where neither training nor evaluation uses it."""
TIMEOUT_S = 10
"""Seconds to wait for a connection to it."""
ELSEWHERE = ("tensorflow_datasets.text", "tensorflow_datasets.translate")
"""Modules whose data sets TFDS finds only after they are imported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(Records):
    """A data set of the TFDS catalog, in a format with random access (array_record)."""

    name: str = dataclasses.field(kw_only=False)
    """The name in TFDS: `imagenet2012`, `glue/sst2`, `wmt14_translate/de-en`; `:1.0.0` for a
    version."""
    train_split: str = "train"
    """Any split of TFDS: `train`, `train[5%:]`, `train+validation`, `all`."""
    eval_split: str = "test"
    """The split of evaluations, likewise."""

    def builder(self) -> tfds.core.DatasetBuilder:
        """The prepared data set; raises `Refused` if there is none, or none with random access."""
        root = data_folder()
        for features in sorted((root / self.name.split(":")[0]).rglob("features.json")):
            refuse_foreign_features(features)
        try:
            builder = read_only_builder.builder_from_files(self.name, data_dir=root)
        except registered.DatasetNotFoundError as error:
            raise Refused(
                f"data set {self.name} is not prepared in {root}: `jaxbig data prepare EXPERIMENT` "
                f"fetches it, or set TFDS_DATA_DIR to where it is; --smoke tries the experiment "
                f"without it."
            ) from error
        for split in (self.train_split, self.eval_split):
            self.instructions(builder, split)
        if not builder.info.available_file_formats() & tfds.core.FileFormat.with_random_access():
            raise Refused(
                f"data set {self.name} in {builder.data_path} cannot be read in any order: move "
                f"that folder away and rebuild it with `jaxbig data prepare EXPERIMENT`."
            )
        return builder

    def instructions(self, builder: tfds.core.DatasetBuilder, split: str) -> list[Any]:
        """The file ranges that TFDS reads for a split; raises `Refused` if it is none or empty."""
        there = ", ".join(
            f"{name} ({each.num_examples})" for name, each in builder.info.splits.items()
        )
        try:
            found = builder.info.splits[split].file_instructions
        except (ValueError, KeyError, AssertionError) as error:
            why = str(error).strip(chr(39) + chr(34)).split("See format at")[0].strip().rstrip(".")
            raise Refused(
                f"data set {self.name} has no split {split!r}, but {there} and what TFDS makes of "
                f"them, such as train[:90%] and train+test: {' '.join(why.split())}."
            ) from None
        if not sum(each.examples_in_shard if each.take == -1 else each.take for each in found):
            raise Refused(
                f"data set {self.name} has no record in {split!r}, of {there}: name a larger part."
            )
        return found

    def prepare(self) -> str:
        builder = self.builder()
        info = builder.info
        used = (self.train_split, self.eval_split)
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
        """The class names of `label`, or ()."""
        features: Any = self.builder().info.features
        label = dict(features.items()).get("label")
        return tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()

    def has_test(self) -> bool:
        used = re.findall(r"\w+", f"{self.train_split} {self.eval_split}")
        return TEST in self.builder().info.splits and not {TEST, "all"} & set(used)

    def open(self, split: str) -> Sequence[Record]:
        builder = self.builder()
        chosen = {"train": self.train_split, "eval": self.eval_split, "test": TEST}[split]
        encoded = {  # images are decoded later, when the wanted size is known
            name: tfds.decode.SkipDecoding()
            for name, feature in builder.info.features.items()  # type: ignore[union-attr]
            if isinstance(feature, tfds.features.Image)
        }
        records = builder.as_data_source(chosen, decoders=encoded)  # type: ignore[call-arg]
        return OpenSplit(records, f"{builder.data_path} {chosen}")  # type: ignore[return-value]

    def fetch(self) -> None:
        """Downloads and prepares the data set if needed: in one process, while others wait.

        An interrupted preparation is restarted.
        """
        with contextlib.suppress(Refused):
            self.builder()
            return
        root = data_folder()
        root.mkdir(parents=True, exist_ok=True)

        def check_network() -> None:
            if not reachable(HOST):
                raise Refused(
                    f"data set {self.name} is not in {root} and {HOST} cannot be reached: prepare "
                    f"it on a machine with a network and copy that folder, or set TFDS_DATA_DIR to "
                    f"where it is."
                )

        lock = root / f"{self.name.replace('/', '_').replace(':', '_')}.lock"
        prepare_once(self.catalog_builder(root), lock, check_network)

    def catalog_builder(self, root: Path) -> tfds.core.DatasetBuilder:
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
        except ImportError as error:  # a few need TensorFlow
            raise Refused(
                f"data set {self.name} needs a library to be prepared ({str(error)[:200]}): "
                f"prepare it elsewhere with `tfds build {self.name} --file_format=array_record`, "
                f"and copy it into {root}."
            ) from None


class OpenSplit:
    """An opened split: TFDS's source, with the location of each record."""

    def __init__(self, records: Any, name: str):
        self.records = records
        self.name = name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __getitems__(self, indices: list[int]) -> list[Record]:
        return self.records.__getitems__(indices)

    def where(self, index: int) -> str:
        return f"{self.name} record {index}"


def refuse_foreign_features(file: Path) -> None:
    """Raises `Refused` if a prepared folder's `features.json` names features outside TFDS.

    TFDS would import, and so run, the modules that are named there.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Refused(
            f"{file} cannot be read: {error}; move that folder away, or prepare it again."
        ) from error
    for name in feature_names(content):
        if not name.startswith("tensorflow_datasets."):
            raise Refused(
                f"{file} names a feature {name}, which is no part of TFDS, and whose module would "
                f"be imported and run: prepare the data set with TFDS's own features."
            )


def feature_names(value: Any) -> Iterator[str]:
    """Yields the classes that a `features.json` names, anywhere in it."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(each, dict | list):
            yield from feature_names(each)
        # "pythonClassName" since TFDS 4.4, "type" before
        elif key in ("pythonClassName", "type") and isinstance(each, str) and "." in each:
            yield each


def overlap(one: list[Any], other: list[Any]) -> int:
    """The number of records that two lists of file instructions share."""

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
        socket.create_connection((host, 443), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True
