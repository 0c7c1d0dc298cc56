"""What is installed: one package, `jaxbig`, with the experiments and the launchers inside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.experiments import ROOT

OWN = """
import experiments, launch, experiments.mine
from jaxbig import experiments as bundled, launch as launchers
import jaxbig.experiments.digits_convnet, jaxbig.launch.local
for module in (experiments, launch, experiments.mine, bundled, launchers):
    print(module.__file__)
"""


def folders() -> list[tuple[Path, list[str]]]:
    """Each folder of the package with its files, links followed."""
    walk = os.walk(ROOT / "jaxbig", followlinks=True)
    return [(Path(folder), files) for folder, _, files in walk if "__pycache__" not in folder]


@pytest.mark.parametrize("name", ["experiments", "launch"])
def test_folder_beside_the_package_is_linked_from_it(name: str) -> None:
    assert (ROOT / "jaxbig" / name).is_symlink() and not (ROOT / name).is_symlink()
    assert os.readlink(ROOT / "jaxbig" / name) == f"../{name}"


def test_every_folder_is_a_package_so_that_it_is_installed() -> None:
    assert [folder for folder, files in folders() if "__init__.py" not in files] == []
    assert {"experiments", "launch"} <= {folder.name for folder, _ in folders()}


def test_every_file_is_python_or_the_marker_of_types_so_that_it_is_installed() -> None:
    files = [folder / file for folder, files in folders() for file in files]
    others = [file for file in files if file.suffix not in (".py", ".pyi")]
    assert others == [ROOT / "jaxbig" / "py.typed"]


def test_own_folder_and_file_of_the_same_names_are_apart_from_those_of_jaxbig(
    tmp_path: Path,
) -> None:
    (tmp_path / "experiments").mkdir()
    for file in ("experiments/__init__.py", "experiments/mine.py", "launch.py"):
        (tmp_path / file).touch()
    done = subprocess.run(
        [sys.executable, "-c", OWN],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(tmp_path / "experiments" / "__init__.py"),
        str(tmp_path / "launch.py"),
        str(tmp_path / "experiments" / "mine.py"),
        str(ROOT / "jaxbig" / "experiments" / "__init__.py"),
        str(ROOT / "jaxbig" / "launch" / "__init__.py"),
    ]
