"""Records of another table, each with the file that it names: image bytes or audio samples."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxbig.constraints import PositiveInt
from jaxbig.data.core.cache import digest_once
from jaxbig.data.core.dataset import Record, Records
from jaxbig.data.core.examples import fetch_each, where
from jaxbig.data.core.fields import present
from jaxbig.data.records.audio_folder import decode_sound
from jaxbig.errors import Refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedFiles(Records):
    """Records of a table with a column of file names, and the content of each file.

    Records are {..., "image": bytes of the file} or {..., "audio": samples float32 [n] of -1 to 1}.
    The split is the table's. All files must exist, and the identity depends on their contents.
    """

    table: Records
    """The table: `Csv`, `JsonLines`, `Parquet`, ..."""
    column: str = "file"
    """The column with the file names."""
    folder: str = "."
    """The folder that file names are relative to."""
    kind: Literal["image", "audio"] = "image"
    """The kind of files; the record has their content under this name."""
    sample_rate: PositiveInt = 16_000
    """Samples a second that sounds are resampled to."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of the table, or ()."""
        return tuple(getattr(self.table, "classes", ()))

    def has_test(self) -> bool:
        return self.table.has_test()

    def fetch(self) -> None:
        self.table.fetch()

    def prepare(self) -> str:
        table = self.table.prepare()
        files: dict[Path, str] = {}
        bad = ""  # the first row that cannot be read or names no file; a run reports it
        for split in ("train", "eval"):
            try:
                records = self.table.open(split)
            except Refused:  # a prepared table without a record in this split, as with eval_share 0
                continue
            for index, record in fetch_each(records):
                try:
                    if isinstance(record, Exception):
                        raise record
                    files.setdefault(self.path(record), where(records, index))
                except Exception as error:
                    bad = bad or f"{where(records, index)}: {error}"
        if not files:
            raise Refused(f"no row of the table names a file, such as {bad}.")
        lost = [(path, row) for path, row in files.items() if not path.is_file()]
        if lost:
            path, row = lost[0]
            raise Refused(
                f"{len(lost)} of {len(files)} files that column {self.column!r} names are not "
                f"there: {path} of {row} the first; the names go from --data.records.folder "
                f"{self.folder}."
            )
        return f"{self.kind} files of ({table}), {len(files)} files {digest_once(sorted(files))}"

    def path(self, record: Record) -> Path:
        """The path of a record's file."""
        name = present(record, self.column, "--data.records.column")
        name = os.fsdecode(name) if isinstance(name, bytes) else str(name)
        return Path(os.path.abspath(os.path.expanduser(self.folder))) / name

    def with_file(self, record: Record) -> Record:
        """A row of the table with the content of its file."""
        data = self.path(record).read_bytes()
        value = data if self.kind == "image" else decode_sound(data, self.sample_rate)
        return {**record, self.kind: value}

    def open(self, split: str) -> "WithFiles":
        return WithFiles(self, self.table.open(split))


class WithFiles(Sequence[Record]):
    """The opened records of a table, each with the content of its file."""

    def __init__(self, records: NamedFiles, opened: Sequence[Record]):
        self.records = records
        self.table = opened
        if hasattr(opened, "draw"):  # a mixture has its own order
            self.draw: Any = opened.draw  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        return self.records.with_file(self.table[index])

    def where(self, index: int) -> str:
        return where(self.table, index)
