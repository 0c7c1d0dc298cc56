"""Records from JSON-lines files, one object per line (jsonlines.org)."""

import dataclasses
import json
import os

from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import File, FilePatterns, ScanResult
from jaxbig.data.records.text_files import OpenSpans, scan_lines
from jaxbig.errors import Refused


class OpenLines(OpenSpans):
    def read(self, file: File, start: int, size: int) -> Record:
        text = self.span(file, start, size)
        try:
            record = json.loads(text.decode("utf-8-sig"))  # a file may start with a byte order mark
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the line is not JSON in UTF-8: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"the line holds a {type(record).__name__}, not an object {{...}}")
        return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonLines(FilePatterns):
    """JSON objects, one record a line; blank lines are none.

    A record's split is decided by the hash of the line's bytes, so equal lines are in one split.
    """

    opened = OpenLines

    def scan(self, file: File) -> ScanResult:
        if not os.path.getsize(file.path):
            raise Refused(f"{file.path} is empty: write it again, or remove it.")
        return scan_lines(file.path)
