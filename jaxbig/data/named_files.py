"""Records whose files are named in a table."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxbig.data.audio_folder import decode_sound
from jaxbig.data.base import Record, Records
from jaxbig.data.contents import digest_files
from jaxbig.data.examples import fetch, where
from jaxbig.data.fields import present
from jaxbig.errors import Refused

AT_ONCE = 256
"""Records that are read at once where all names are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedFiles(Records):
    """Records of a table with a column of file names, and what is in each file: {..., "image": the file's bytes} or
    {..., "audio": samples float32 [n] of -1 to 1}.

    The split is the table's. All files must be there, and the identity is of their contents.
    """

    table: Records
    """The table: `Csv`, `JsonLines`, `Parquet`, ..."""
    column: str = "file"
    """Which of its columns names the file."""
    folder: str = "."
    """The folder from which names go."""
    kind: Literal["image", "audio"] = "image"
    """What is in the files; the record has it under this name."""
    sample_rate: int = 16_000
    """Samples a second that sounds are resampled to."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, where the table has some."""
        return tuple(getattr(self.table, "classes", ()))

    def fetch(self) -> None:
        self.table.fetch()

    def prepare(self) -> str:
        table = self.table.prepare()
        files: dict[Path, str] = {}
        for split in ("train", "eval"):
            records = self.table.open(split)
            for start in range(0, len(records), AT_ONCE):
                places = list(range(start, min(start + AT_ONCE, len(records))))
                for place, record in zip(places, fetch(records, places), strict=True):
                    files.setdefault(self.path(record), where(records, place))
        lost = [(path, row) for path, row in files.items() if not path.is_file()]
        if lost:
            path, row = lost[0]
            raise Refused(
                f"{len(lost)} of {len(files)} files that column {self.column!r} names are not there: {path} of {row} "
                f"the first; the names go from --data.records.folder {self.folder}."
            )
        return f"{self.kind} files of ({table}), {len(files)} files {digest_files(sorted(files))}"

    def path(self, record: Record) -> Path:
        """Where a record's file is."""
        return Path(os.path.abspath(os.path.expanduser(self.folder))) / str(present(record, self.column))

    def open(self, split: str) -> "WithFiles":
        return WithFiles(self, self.table.open(split))


class WithFiles(Sequence[Record]):
    """The opened records of a table, each with what its file holds."""

    def __init__(self, records: NamedFiles, opened: Sequence[Record]):
        self.records, self.opened = records, opened
        if hasattr(opened, "draw"):  # a mixture says itself in which order it is trained on
            self.draw: Any = opened.draw  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.opened)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        record = self.opened[index]
        data = self.records.path(record).read_bytes()
        value = data if self.records.kind == "image" else decode_sound(data, self.records.sample_rate)
        return {**record, self.records.kind: value}

    def where(self, index: int) -> str:
        return where(self.opened, index)
