"""What Python says of an experiment before it is trained."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import jaxbig as jb
from jaxbig.tools import inspect_batch

Tiny = Callable[..., jb.Experiment]


def test_a_description_has_a_row_for_each_parameter(tiny: Tiny) -> None:
    shown = jb.describe(tiny())
    sizes = {row["parameter"]: row["numbers"] for row in shown["table"]}
    assert sizes["layers_0/linear/kernel"] == 64 * 16 and sum(sizes.values()) == 1210
    assert shown["parameters"] == 1210


def test_a_batch_has_its_arrays_and_a_picture(tiny: Tiny, tmp_path: Any) -> None:
    batch = jb.inspect_batch(tiny(), step=17)
    said, arrays = inspect_batch.look(tiny(), 17, "train", 1, tmp_path / "batch.png")
    assert batch.keys() == {"inputs", "targets", "mask"} and batch["inputs"].shape == (16, 8, 8, 1)
    assert all(np.array_equal(batch[name], arrays[name]) for name in arrays)
    assert batch.summary["batch_sha256"] == said["batch_sha256"]
    assert batch.picture == (tmp_path / "batch.png").read_bytes() == batch._repr_png_()
    assert "inputs: float32 16 x 8 x 8 x 1, 0 to 1" in repr(batch)
    assert not np.array_equal(jb.inspect_batch(tiny(), step=18)["inputs"], batch["inputs"])


def test_a_batch_of_text_shows_it(tiny: Tiny) -> None:
    data = jb.load("pytext_transformer").replace(**{"data.batch": 4, "data.length": 16})
    batch = jb.inspect_batch(data, split="eval")
    assert batch.picture is None and len(batch.summary["rows"]) == 4
    assert repr(batch.summary["rows"][0]["inputs"]) in repr(batch)


def test_a_check_compares_the_mesh_with_one_device(tiny: Tiny) -> None:
    found = jb.check(tiny(mesh=jb.Mesh(data=2, fsdp=2)))
    assert found["ok"] and found["mesh"]["fsdp"] == 2
    assert [each["ok"] for each in found["causes"]].count(False) == 0
    assert jb.check(tiny(mesh=jb.Mesh(data=1)))["mesh"] is None
    with pytest.raises(jb.Refused, match="one device"):
        jb.check(tiny(mesh=jb.Mesh(data=1)), tolerance=0.1)


@pytest.mark.slow
def test_a_child_process_checks_and_plans(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(mesh=jb.Mesh(data=2, fsdp=2))
    here = jb.check(experiment)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    there = jb.check(experiment)
    assert there.keys() == here.keys() and there["ok"]
    monkeypatch.undo()
    plan = jb.plan(tiny(), "h100:2")
    assert plan["fits"] and plan["devices"] == 2 and plan["parameters"] == 1210
    with pytest.raises(jb.Refused, match="h300"):
        jb.plan(tiny(), "h300:2")
