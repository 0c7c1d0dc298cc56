"""Programs that are kept from one start of a run to the next."""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxbig.system import compilation_cache
from jaxbig.system.compilation_cache import cache_folder, machine, remove_unfinished

SMALL = [
    f"--model.layers.{field}=8" for field in ("0.channels", "1.channels", "4.channels", "7.width")
]
TRAIN = ["train", "digits_convnet", "--steps=1", "--evaluate-every=1", "--checkpoint-every=1"]


def programs(cache: Path) -> list[Path]:
    return sorted(cache.glob("compiled/*/*-cache"))


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_damage_costs_two_compilations(
    jaxbig: Callable[..., Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    logs = []
    digests = set()

    def start(number: int, **environment: str) -> None:
        here = {"JAXBIG_CACHE": str(cache), **environment}
        done = jaxbig(*TRAIN, *SMALL, "--json", "--workdir", f"run{number}", **here)
        assert done.returncode == 0, done.stderr
        logs.append(" ".join(done.stderr.split()))
        [digest] = re.findall(r'"state_sha256": "(\w+)"', done.stdout)
        digests.add(digest)

    start(0)
    assert "compiled in" in logs[0] and "(cached)" not in logs[0]
    kept = programs(cache)
    assert any("train_step" in file.name for file in kept)
    start(1)
    assert "(cached)" in logs[1] and programs(cache) == kept
    for file in kept:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    start(2)
    assert "(cached)" not in logs[2] and "a kept program was damaged; removed all of" in logs[2]
    start(3)
    assert "(cached)" not in logs[3]
    start(4)
    assert "(cached)" in logs[4]  # the damaged one was still there when it was compiled
    kept[0].parent.chmod(stat.S_IRWXU | stat.S_IWOTH)
    start(5)
    assert "(cached)" not in logs[5] and "others can write to it; set JAXBIG_CACHE" in logs[5]
    assert len(digests) == 1


@pytest.mark.slow
def test_several_devices_of_a_cpu_and_those_who_turn_it_off_keep_nothing(
    jaxbig: Callable[..., Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for given in ({"JAX_NUM_CPU_DEVICES": "2"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}):
        done = jaxbig(
            *TRAIN, *SMALL, "--workdir", "run", JAXBIG_CACHE=str(tmp_path / "cache"), **given
        )
        assert done.returncode == 0, done.stderr
        assert not programs(cache)


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (tmp_path / name).write_bytes(b"x")
    remove_unfinished(tmp_path)
    assert {file.name for file in tmp_path.glob("*-*")} == {"whole-cache", "whole-atime"}


def test_another_number_of_cores_is_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path / "compiled" and folder == cache_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setenv("NPROC", "64")
    assert cache_folder() != folder
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(compilation_cache.os, "sched_getaffinity", lambda _: range(96))
    assert not str(folder).endswith(machine())


@pytest.mark.skipif(os.getuid() == 0, reason="root can write everywhere")
def test_a_folder_that_cannot_be_made_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("JAXBIG_CACHE", str(tmp_path))
    with pytest.raises(OSError):
        cache_folder()
