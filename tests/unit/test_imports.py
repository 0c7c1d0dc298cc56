"""Which room may import which, and what no file may contain.

A room is a folder or a file at the top of `jaxbig/`, or `launch`, which is `jaxbig.launch` to what
imports it. `data` and `models` have rooms inside.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.experiments import ROOT

PACKAGE = sorted((ROOT / "jaxbig").rglob("*.py")) + sorted((ROOT / "launch").glob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))

# A room imports rooms of lower floors, and itself.
FLOORS = (
    {"arrays", "errors"},
    {"constraints"},
    {"optim", "system"},
    {"data", "distributed", "tracking"},
    {"checkpoint", "models", "objectives"},
    {"config", "pretrained"},
    {"adapt"},
    {"launch", "program", "sweep"},
    {"cost"},
    {"planning", "train"},
    {"inference", "tools"},
    {"evaluators"},
    {"cli"},
    {"__main__"},
)
INNER_FLOORS = {
    "data": (
        {"data.core"},
        {"data.pipeline", "data.records", "data.tokenize", "data.transforms"},
        {"data"},
        {"data.builtin"},
    ),
    "models": ({"models.layers"}, {"models"}),
}
# What the rooms with most files may import besides themselves.
ONLY = {
    "models": {
        "jaxbig.arrays.batch_mask",
        "jaxbig.arrays.dtypes",
        "jaxbig.arrays.row_parts",
        "jaxbig.constraints",
        "jaxbig.distributed.logical_axes",
        "jaxbig.errors",
        "jaxbig.system.determinism",
    },
    "objectives": {
        "jaxbig.arrays.batch_mask",
        "jaxbig.arrays.dtypes",
        "jaxbig.constraints",
        "jaxbig.distributed.logical_axes",
        "jaxbig.errors",
    },
    "data": {
        "jaxbig.arrays.batch_mask",
        "jaxbig.constraints",
        "jaxbig.errors",
        "jaxbig.system.disk",
        "jaxbig.system.signals",
    },
    "optim": {"jaxbig.arrays.tree", "jaxbig.constraints", "jaxbig.errors"},
    "checkpoint": {
        "jaxbig.arrays.tree",
        "jaxbig.distributed.multihost",
        "jaxbig.distributed.watchdog",
        "jaxbig.errors",
        "jaxbig.system.disk",
    },
    "launch": {
        "jaxbig.config.options",
        "jaxbig.config.overrides",
        "jaxbig.errors",
        "jaxbig.system.exit_codes",
        "jaxbig.system.child_processes",
        "jaxbig.system.local_gpus",
        "jaxbig.system.signals",
        "jaxbig.system.standard_streams",
        "jaxbig.system.unraisable",
    },
    "experiments": {
        "jaxbig.config.experiment",
        "jaxbig.config.guard",
        "jaxbig.config.lora",
        "jaxbig.config.precision",
        "jaxbig.config.evaluator",
        "jaxbig.data",
        "jaxbig.distributed.mesh",
        "jaxbig.evaluators",
        "jaxbig.models",
        "jaxbig.objectives",
        "jaxbig.optim",
    },
}
MOST_ARROWS_A_ROOM = 5
MOST_ROOT_FILES = 5
NEVER = {
    "eval": "eval(text)",
    "exec": "exec(text)",
    "builtins.eval": "import builtins; builtins.eval(text)",
    "pickle": "import pickle",
    "from pickle": "from pickle import loads",
    "dill": "import dill as d",
    "shell": "subprocess.run(text, shell=True)",
    "allow_pickle": "np.load(file, allow_pickle=True)",
    "yaml": "yaml.load(text)",
    "from yaml": "from yaml import load",
    "os.system": "os.system(text)",
    "from os": "from os import system",
    "os.popen": "os.popen(text)",
}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {
    *(("builtins", name) for name in ("eval", "exec")),
    *(("os", name) for name in ("system", "popen")),
    *(
        ("yaml", name)
        for name in ("load", "load_all", "unsafe_load", "full_load", "Loader", "UnsafeLoader")
    ),
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Each module that is imported anywhere in a file, and each name taken from one, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(file: Path) -> list[str]:
    """What a file imports of the repository itself, wherever in the file the import is."""
    names = imports(ast.parse(file.read_text()))
    return [name for name in names if name.split(".")[0] == "jaxbig"]


def room(name: str) -> str:
    """The room of a dotted name: `jaxbig.models.layers.basic` is in `models`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def inner_room(name: str) -> str:
    """The same inside `data` or `models`: `jaxbig.models.layers.basic` is in `models.layers`."""
    parts = name.split(".")[1:3]
    return ".".join(parts) if (ROOT / "jaxbig").joinpath(*parts).is_dir() else parts[0]


def dotted(file: Path) -> str:
    """The dotted name of a file: `jaxbig.launch.local` for `launch/local.py`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "jaxbig" else ("jaxbig", *parts))


def is_within(name: str, allowed: set[str]) -> bool:
    """Whether a dotted name is one of `allowed` or inside one."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    pairs = {(room(dotted(file)), room(name)) for file in PACKAGE for name in own(file)}
    return {(here, there) for here, there in pairs if here != there}


def forbidden(tree: ast.AST) -> list[str]:
    """What a file must not contain, as `line N: what`."""
    found = [f"import of {name}" for name in imports(tree) if name.split(".")[0] in PICKLES]
    found += [f"import of {name}" for name in imports(tree) if tuple(name.split(".")) in CALLS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            found.append(f"line {node.lineno}: {node.id}")
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in CALLS
        ):
            found.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
        if isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
            found.append(f"line {node.value.lineno}: {node.arg}=")
    return found


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", PACKAGE + EXPERIMENTS, ids=relative)
def test_room_imports_only_rooms_on_lower_floors(file: Path) -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    here = room(dotted(file))
    outside = [name for name in own(file) if room(name) != here]
    if here == "__init__":
        assert not outside
    elif here != "experiments":
        assert here in floor_of, f"add {here} to FLOORS"
        assert [name for name in outside if floor_of[room(name)] >= floor_of[here]] == []
    if here in ONLY:
        assert [name for name in outside if not is_within(name, ONLY[here])] == []


@pytest.mark.parametrize("file", PACKAGE + EXPERIMENTS, ids=relative)
def test_file_imports_experiments_and_launchers_as_parts_of_jaxbig(file: Path) -> None:
    outside = {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}
    assert not outside & {"experiments", "launch"}


@pytest.mark.parametrize(
    "file", [file for file in PACKAGE if room(dotted(file)) in INNER_FLOORS], ids=relative
)
def test_inner_room_imports_only_inner_rooms_on_lower_floors(file: Path) -> None:
    outer = room(dotted(file))
    floor_of = {room: floor for floor, rooms in enumerate(INNER_FLOORS[outer]) for room in rooms}
    here = inner_room(dotted(file))
    inside = [name for name in own(file) if room(name) == outer and inner_room(name) != here]
    assert [name for name in inside if floor_of[inner_room(name)] >= floor_of[here]] == []


def test_every_room_is_on_a_floor() -> None:
    rooms = {room(dotted(file)) for file in PACKAGE} - {"__init__"}
    assert set().union(*FLOORS) == rooms
    for outer, floors in INNER_FLOORS.items():
        files = [file for file in PACKAGE if room(dotted(file)) == outer]
        assert set().union(*floors) == {inner_room(dotted(file)) for file in files}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    modules = {dotted(file).removesuffix(".__init__"): file for file in PACKAGE}
    graph = {
        module: {
            found
            for name in own(file)
            for found in (name, name.rpartition(".")[0])
            if found in modules and found != module
        }
        for module, file in modules.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())


def test_number_of_arrows_between_rooms_stays_small() -> None:
    rooms = set().union(*FLOORS)
    assert len(arrows()) < MOST_ARROWS_A_ROOM * len(rooms), sorted(arrows())


def test_number_of_files_beside_the_rooms_stays_small() -> None:
    assert len(list((ROOT / "jaxbig").glob("*.py"))) <= MOST_ROOT_FILES


@pytest.mark.parametrize("file", PACKAGE, ids=relative)
def test_only_the_checkpoint_manager_imports_orbax_and_no_file_tensorflow_or_torch(
    file: Path,
) -> None:
    outside = {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}
    assert ("orbax" in outside) == (dotted(file) == "jaxbig.checkpoint.manager")
    assert not outside & {"tensorflow", "torch"}


@pytest.mark.parametrize("file", PACKAGE + EXPERIMENTS, ids=relative)
def test_file_runs_no_text_no_shell_and_no_pickle(file: Path) -> None:
    assert not forbidden(ast.parse(file.read_text()))


@pytest.mark.parametrize("text", NEVER.values(), ids=NEVER)
def test_forbidden_statement_is_found(text: str) -> None:
    assert forbidden(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess, os.path, json",
        "subprocess.run([text])",
        "spec.loader.exec_module(m)",
        "jit.lower(x).compile()",
        "ast.literal_eval(t)",
        "yaml.safe_load(t)",
        "evaluate(x)",
    ],
)
def test_harmless_statement_passes(text: str) -> None:
    assert not forbidden(ast.parse(text))
