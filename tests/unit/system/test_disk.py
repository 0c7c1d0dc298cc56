"""Writes survive a power loss: content is on disk before its name, the name before later writes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.data.core import cache
from jaxbig.errors import Failed, Refused
from jaxbig.system import disk
from jaxbig.system.disk import write_atomically
from jaxbig.system.json_files import write_json


def save_checkpoint(folder: Path) -> Path:
    checkpoints = CheckpointManager(folder / "checkpoints")
    checkpoints.save(3, {"kernel": jnp.ones(8)}, {})
    checkpoints.wait()
    return checkpoints.path(3)


def write_run(folder: Path) -> Path:
    write_json(folder / "run.json", {"seed": 0})
    return folder / "run.json"


def write_metrics(folder: Path) -> Path:
    write_atomically(folder / "metrics.jsonl", "{}")
    return folder / "metrics.jsonl"


def add_metrics(folder: Path) -> Path:
    path = save_checkpoint(folder)
    CheckpointManager(path.parent).note(3, {"loss": 1.0})
    return path / "jaxbig.json"


def cache_folder(folder: Path) -> Path:
    return cache.build_once(folder / "index", lambda part: (part / "text").write_text("a"))


def cache_file(folder: Path) -> Path:
    cache.write_atomically(folder / "classes.json", lambda part: part.write_text("[]"))
    return folder / "classes.json"


@pytest.mark.parametrize(
    "write", [write_run, write_metrics, save_checkpoint, add_metrics, cache_folder, cache_file]
)
def test_content_is_synced_before_its_name_and_the_name_after(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync = os.fsync
    replace = Path.replace

    def synced(opened: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{opened}")))
        fsync(opened)

    def renamed(source: Path, target: Path) -> Path:
        events.append((f"{source} ->", str(target)))
        return replace(source, target)

    monkeypatch.setattr(disk.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    target = write(tmp_path)
    at = max(
        number
        for number, (what, path) in enumerate(events)
        if what.endswith("->") and path == str(target)
    )
    temporary = events[at][0].removesuffix(" ->")
    needed = {str(target), *map(str, target.rglob("*"))}
    before = {
        path.replace(temporary, str(target), 1) for what, path in events[:at] if what == "sync"
    }
    assert needed <= before and len(needed) > (5 if write is save_checkpoint else 0)
    assert ("sync", str(target.parent)) in events[at:]


@pytest.mark.parametrize("number", disk.CANNOT_SYNC)
def test_a_file_system_that_cannot_sync_is_written_to_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(opened: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.os, "fsync", fails)
    assert write_run(tmp_path).read_text()


def test_a_disk_that_is_ill_is_reported_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(opened: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = write_run(tmp_path).read_text()
    monkeypatch.setattr(disk.os, "fsync", fails)
    with pytest.raises(Failed, match=r"cannot write .*run.json: Input/output error"):
        write_json(tmp_path / "run.json", {"seed": 1})
    assert (tmp_path / "run.json").read_text() == before


def test_new_folder_may_be_the_current_one_and_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with disk.new_folder(".") as partial:
        (partial / "file").write_text("x")
    assert (tmp_path / "empty" / "file").read_text() == "x"
    (tmp_path / "nothing").mkdir()
    for target in ("nothing", "missing"):
        link = tmp_path / f"to_{target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(Refused, match=f"to_{target} is there already"), disk.new_folder(link):
            pass
        assert link.is_symlink()
