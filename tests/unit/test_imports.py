"""The plan of the house, read off the imports: who may know whom, and what is never written."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.experiments import ROOT

HOUSE = sorted((ROOT / "jaxbig").rglob("*.py")) + sorted((ROOT / "launch").glob("*.py"))
RUNS = sorted((ROOT / "experiments").rglob("*.py"))

# A room imports rooms of lower floors, and its own.
FLOORS = (
    {"errors", "keys", "dtypes", "batch_mask", "signals", "streams", "disk"},
    {"lifeline", "children", "determinism", "environment"},
    {"state", "tracking", "processes", "watchdog", "placement"},
    {"mesh", "workdir", "hold", "checkpoint", "precision", "float32_sums"},
    {"models", "objectives", "data", "optim", "guard", "blame"},
    {"experiment"},
    {"gradient"},
    {"step"},
    {"resume", "show", "pictures", "interop", "sibling", "inspection", "skipped"},
    {"planning"},
    {"pace"},
    {"loop", "options", "smoke"},
    {"evaluate", "bench", "compare", "check", "replay", "launch", "settings"},
    {"verb", "sweep"},
    {"sweep_verb"},
    {"verbs"},
    {"command_line"},
    {"__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The rooms that are filled most are kept narrower still.
ONLY = {
    "models": {"models", "batch_mask", "mesh", "dtypes", "determinism", "errors"},
    "objectives": {"objectives", "batch_mask", "mesh", "dtypes", "errors"},
    "data": {"data", "errors", "signals"},
    "optim": {"optim", "state", "errors"},
    "checkpoint": {"disk", "state", "processes", "watchdog", "errors"},
    "launch": {"launch", "options", "children", "errors", "streams"},
    "experiments": {
        "experiments",
        "experiment",
        "models",
        "objectives",
        "data",
        "optim",
        "mesh",
        "precision",
        "guard",
    },
}
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


def room(parts: tuple[str, ...]) -> str:
    """("jaxbig", "models", "layers") is in the room "models"; a launcher is in "launch"."""
    return parts[1] if parts[0] == "jaxbig" else parts[0]


def neighbours(file: Path) -> set[str]:
    names = [tuple(name.split(".")) for name in imports(ast.parse(file.read_text()))]
    return {room(name) for name in names if name[0] in ("jaxbig", "experiments", "launch")}


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


@pytest.mark.parametrize("file", HOUSE + RUNS, ids=relative)
def test_a_room_imports_only_rooms_below_it(file: Path) -> None:
    here = room(file.relative_to(ROOT).with_suffix("").parts)
    if here == "__init__":
        assert not neighbours(file)
    elif here == "experiments":
        assert neighbours(file) <= ONLY[here]
    else:
        assert here in FLOOR, f"say in FLOORS on which floor {here} stands"
        below = {other for other, floor in FLOOR.items() if floor < FLOOR[here]} | {here}
        assert neighbours(file) <= below & ONLY.get(here, below)


@pytest.mark.parametrize("file", HOUSE, ids=relative)
def test_orbax_is_known_to_the_checkpoint_alone_and_tensorflow_to_nobody(file: Path) -> None:
    outside = {name.split(".")[0] for name in imports(ast.parse(file.read_text()))}
    assert ("orbax" in outside) == (file.name == "checkpoint.py")
    assert not outside & {"tensorflow", "torch"}


@pytest.mark.parametrize("file", HOUSE + RUNS, ids=relative)
def test_nothing_runs_text_a_shell_or_a_pickle(file: Path) -> None:
    assert not forbidden(ast.parse(file.read_text()))


@pytest.mark.parametrize("text", NEVER.values(), ids=NEVER)
def test_this_reading_would_notice(text: str) -> None:
    assert forbidden(ast.parse(text))


def test_this_reading_leaves_the_innocent_alone() -> None:
    innocent = "spec.loader.exec_module(m); jit.lower(x).compile(); ast.literal_eval(t); yaml.safe_load(t); evaluate(x)"
    assert not forbidden(
        ast.parse(f"import subprocess, os.path, json\n{innocent}\nsubprocess.run([text])")
    )
