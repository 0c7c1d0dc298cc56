"""Parameters by path that cannot be written."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from unit.inference.test_generate import language_run

import jaxbig as jb


def test_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", refuse)
    with pytest.raises(jb.Failed, match=r"cannot write .*\.safetensors: I/O error: No sp"):
        jb.export(language_run(), tmp_path / "folder", format="safetensors")
    assert not list(tmp_path.iterdir())
