"""What the README says to write is written, tested and trained."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import EMBEDDED, ROOT


def recipe(folder: Path) -> list[str]:
    """Writes the files of the README's recipe; their names."""
    text = (ROOT / "README.md").read_text().split("### A new model is three files")[1]
    found = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    for name, code in found:
        (folder / name).write_text(code)
    return [name for name, _ in found]


def test_a_new_model_is_three_files(jaxbig: Any, tmp_path: Path) -> None:
    assert recipe(tmp_path) == ["mixer.py", "digits_mixer.py", "test_mixer.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mixer.py"]
    tested = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert tested.returncode == 0, tested.stdout
    mesh = ["--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2]
    trained = jaxbig("train", "digits_mixer.py", "--steps", 60, "--json", *mesh, JAX_NUM_CPU_DEVICES="8")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["metrics"]["eval/accuracy"] > 0.6


def test_the_table_of_experiments_names_all_that_run_here() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"| `{name}` |" in text for name in EMBEDDED)
