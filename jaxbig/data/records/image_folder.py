"""Records from a folder of image files, with one folder per class."""

import dataclasses
import hashlib
import logging
import os
from typing import Any, ClassVar

import numpy as np

from jaxbig.data.core.dataset import Record
from jaxbig.data.records.file_index import File, Files, OpenFiles, ScanResult, hashes, readable
from jaxbig.errors import Refused

log = logging.getLogger("jaxbig")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EVALS = ("eval", "val", "validation", "test")  # the first that exists is the evaluation split


class OpenClassFolder(OpenFiles):
    """Files in folders of classes."""

    def __init__(self, records: "ClassFolder", *args: Any):
        super().__init__(records, *args)
        self.labels = {name: label for label, name in enumerate(records.classes)}

    def label(self, file: File) -> int:
        """The number of a file's class."""
        return self.labels[os.path.dirname(file.name)]

    def where(self, index: int) -> str:
        return self.place(index)[0].path


class OpenImages(OpenClassFolder):
    def read(self, file: File, start: int, size: int) -> Record:
        with open(file.path, "rb") as image:
            return {"image": image.read(), "label": self.label(file)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassFolder(Files):
    """Files in a folder for each class."""

    folder: str
    """The folder with a folder for each class."""

    endings: ClassVar[tuple[str, ...]]
    of: ClassVar[str]
    """The kind of file, for messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted; a label is an index into them."""
        return tuple(require_folders(next(iter(self.splits().values()))))

    def has_test(self) -> bool:
        evaluated = os.path.basename(self.splits().get("eval", "test"))
        return super().has_test() or (evaluated != "test" and "test" in folders(self.root))

    def open(self, split: str) -> OpenFiles:
        if split == "test" and not self.test_share:
            other = dataclasses.replace(self)
            vars(other)["held_out"] = "test"
            return other.open("eval")
        return super().open(split)

    @property
    def root(self) -> str:
        """The absolute path of the folder; raises `Refused` if it is not there."""
        root = os.path.abspath(os.path.expanduser(self.folder))
        if not os.path.isdir(root):
            raise Refused(f"there is no folder {self.folder} (sought as {root}).")
        return root

    def splits(self) -> dict[str, str]:
        """The folder of each split, "train" first; of "" if the records' hashes decide."""
        root = self.root
        there = folders(root)
        held_out = [vars(self).get("held_out", name) for name in EVALS if name in there]
        if "train" not in there or not held_out:
            return {"": root}
        return {"train": os.path.join(root, "train"), "eval": os.path.join(root, held_out[0])}

    def found(self) -> list[File]:
        files: list[File] = []
        classes = self.classes
        passed: list[str] = []
        for split, root in self.splits().items():
            there = require_folders(root)
            if unknown := sorted(set(there) - set(classes)):
                raise Refused(
                    f"{root} has class {unknown[0]}, which the training {self.of}s have not."
                )
            for name in there:
                with os.scandir(os.path.join(root, name)) as entries:
                    there_are = [entry.name for entry in entries if entry.name[0] != "."]
                names = sorted(each for each in there_are if each.lower().endswith(self.endings))
                passed += [
                    f"{name}/{each}"
                    for each in there_are
                    if not each.lower().endswith(self.endings)
                ]
                if not names:
                    raise Refused(
                        f"class {name} in {root} has no {self.of} ({' '.join(self.endings)}): put "
                        f"some in, or remove its folder."
                    )
                files += [
                    File(os.path.join(root, name, image), f"{name}/{image}", split)
                    for image in names
                ]
        if passed:
            log.warning(
                "%d files and folders in %s are no %ss by their endings (%s) and are passed over: "
                "%s%s",
                len(passed),
                self.folder,
                self.of,
                " ".join(self.endings),
                ", ".join(sorted(passed)[:3]),
                ", ..." if len(passed) > 3 else "",
            )
        return files

    def scan(self, file: File) -> ScanResult:
        with open(file.path, "rb") as image:
            content = hashlib.file_digest(image, "sha256").digest()
            size = np.array([image.tell()], np.int64)
        return ScanResult(np.zeros(1, np.int64), size, hashes([os.fsencode(file.name)]), content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder(ClassFolder):
    """Images by class, FOLDER/CLASS/IMAGE.

    Records are {"image": bytes of the file, "label": number of the class}. FOLDER/train and
    FOLDER/val (or eval, validation, test), if they exist, are the splits and hold the classes.
    Otherwise the hash of an image's name, CLASS/IMAGE, decides. Names that start with a dot are
    ignored.
    """

    opened = OpenImages
    endings = ENDINGS
    of = "image"


def folders(root: str) -> list[str]:
    """The names of the folders in a folder, sorted."""
    with readable(), os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def require_folders(root: str) -> list[str]:
    """The names of the folders in a folder, sorted; raises `Refused` if there is none."""
    if not (there := folders(root)):
        raise Refused(f"{root} has no folder in it: make one for each class, with its files.")
    return there
