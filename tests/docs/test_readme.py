"""What the documentation says to write is written, tested and trained."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.compiling import HASTY
from support.experiments import EMBEDDED, ROOT

from jaxbig.data.audio import Sounds
from jaxbig.data.pipeline.loader import train_batch


def recipe(folder: Path) -> list[str]:
    """Writes the files of the recipe in docs/models.md; their names."""
    text = (ROOT / "docs" / "models.md").read_text().split("### A new model is three files")[1]
    found = re.findall(r'`\w+\.py`:\n\n```python title="(.*?)"\n(.*?)```', text, re.DOTALL)
    for name, code in found:
        (folder / name).write_text(code)
    return [name for name, _ in found]


@pytest.mark.slow
def test_a_new_model_is_three_files(jaxbig: Any, tmp_path: Path) -> None:
    assert recipe(tmp_path) == ["mixer.py", "digits_mixer.py", "test_mixer.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mixer.py"]
    how: dict[str, Any] = {
        "cwd": tmp_path,
        "env": {**os.environ, **HASTY},
        "capture_output": True,
        "text": True,
    }
    tested = subprocess.run(command, timeout=300, check=False, **how)
    assert tested.returncode == 0, tested.stdout
    mesh = ["--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2]
    trained = jaxbig(
        "train", "digits_mixer.py", "--steps", 60, "--json", *mesh, JAX_NUM_CPU_DEVICES="8", **HASTY
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["metrics"]["eval/accuracy"] > 0.6


def code(heading: str) -> str:
    """The first block of Python under a heading of docs/data.md."""
    text = (ROOT / "docs" / "data.md").read_text().split(heading)[1]
    return re.findall(r"```python title=.*?\n(.*?)```", text, re.DOTALL)[0]


@pytest.mark.slow
def test_your_own_pictures_are_one_file(jaxbig: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(20):
        kind = ("forest", "sea")[number % 2]
        pixels = draw.integers(0, 160, (*draw.integers(40, 90, 2), 3), dtype=np.uint8)
        pixels[..., 1 + number % 2] += 90
        (tmp_path / "pictures" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / kind / f"{number}.png")
    (tmp_path / "my_pictures.py").write_text(code("### Your own pictures are one file"))
    trained = jaxbig(
        "train", "my_pictures.py", "--steps", 30, "--evaluate-every", 10, "--json", **HASTY
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["metrics"]["eval/accuracy"] == 1
    seen = jaxbig("data", "inspect", "my_pictures.py", "--json")
    assert seen.returncode == 0, seen.stderr
    found = json.loads(seen.stdout)
    assert (
        set(found["classes"]) == {"forest", "sea"}
        and found["fields"][0]["shape"] == "8 x 32 x 32 x 3"
    )
    assert Image.open(tmp_path / found["picture"]).size[0] > 300


def test_a_new_kind_of_records_is_one_dataclass_with_one_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "waves.py").write_text(code("### A new kind of records is one dataclass"))
    monkeypatch.syspath_prepend(tmp_path)
    data = Sounds(records=importlib.import_module("waves").Waves(count=20), classes=2, batch=4)
    rows = train_batch(data.source("train"), 3, seed=0, batch=4)
    assert {name: (each.shape, each.dtype) for name, each in rows.items()} == {
        name: (each.shape, each.dtype) for name, each in data.spec().items()
    }
    heard = data.transform(
        jax.tree.map(jnp.asarray, rows), jax.random.split(jax.random.key(0), 4), True
    )["inputs"]
    loudest = heard.mean(1)[..., 0].argmax(1)  # the band of each pitch
    assert all((loudest > 27) == (rows["targets"] == 1))  # 1,000 Hz is in the 28th of 64


def test_the_table_of_experiments_names_all_that_run_here() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    assert all(f"| `{name}` |" in text for name in EMBEDDED)
