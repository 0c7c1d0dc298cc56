"""Finding and loading experiment files by name or path."""

import ast
import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from jaxbig.config.experiment import Experiment
from jaxbig.errors import Refused


def available() -> dict[str, Path]:
    """The experiment files by name: those in ./experiments, then those that come with jaxbig."""
    folders = [Path.cwd() / "experiments", Path(__file__).parents[1] / "experiments"]
    files = [
        file
        for folder in folders
        for file in sorted(folder.glob("*.py"))
        if file.stem != "__init__"
    ]
    return {file.stem: file for file in reversed(files)}


def summary(file: Path) -> str:
    """The first line of an experiment file's docstring, without running it."""
    try:
        return (ast.get_docstring(ast.parse(file.read_bytes())) or "").split("\n")[0]
    except (SyntaxError, ValueError) as error:
        return f"cannot be read: line {getattr(error, 'lineno', None) or '?'}: {error}"


def find(name: str) -> types.ModuleType:
    """The module of an experiment.

    Args:
      name: a name that `jaxbig list` shows, a `.py` path, or a module's dotted name.

    Raises:
      Refused: if there is none; the message has the nearest names.
    """
    known = available()
    if name in known or name.endswith(".py"):
        return import_file(known.get(name, Path(name)))
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return import_dotted(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(near)}" if near else "`jaxbig list` names them"
    raise Refused(f"no experiment named {name!r}: {hint}.")


def load(name: str) -> Experiment:
    """The experiment that `config()` returns in the module called `name`, as for `find`."""
    module = find(name)
    if not callable(getattr(module, "config", None)):
        raise Refused(
            f"{module.__file__} has no function config(): it must return a jaxbig Experiment."
        )
    experiment = module.config()
    if not isinstance(experiment, Experiment):
        raise Refused(
            f"config() in {module.__file__} returned {type(experiment).__name__}, "
            f"not an Experiment."
        )
    return experiment


@contextlib.contextmanager
def importing(*folders: Path) -> Iterator[None]:
    """A context in which the folders' modules can be imported, those of the first one first.

    Raises:
      Refused: for a syntax error, with its file and line.
    """
    added = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    except SyntaxError as error:
        raise Refused(f"{error.filename} line {error.lineno}: {error.msg}.") from None
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)


def import_file(path: Path) -> types.ModuleType:
    """Runs a `.py` file as a module.

    It can import modules in its folder and in the current folder. If it is in a package, it can
    import modules of the package too, by their full or relative names.
    """
    root, package = package_of(path)
    name = ".".join([*package, f"jaxbig_experiment_{path.stem}"])  # no other module's name
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if not path.is_file() or spec is None or spec.loader is None:
        raise Refused(
            f"no experiment file {path}: name a .py file, or one of those that `jaxbig list` shows."
        )
    module = importlib.util.module_from_spec(spec)
    with importing(path.parent, root, Path.cwd()):
        if package:
            importlib.import_module(".".join(package))
        sys.modules[name] = module  # dataclasses look for it there
        spec.loader.exec_module(module)
    return module


def package_of(path: Path) -> tuple[Path, list[str]]:
    """The package that a file is in: the folder to import it from, and the parts of its name."""
    root = Path(os.path.abspath(path)).parent
    names: list[str] = []
    while root.name.isidentifier() and (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root = root.parent
    return root, names


def import_dotted(name: str) -> types.ModuleType:
    """Imports a module by its dotted name, as Python would from the current folder."""
    with importing(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, but imports one that does not
            raise Refused(
                f"no module {name!r} ({error}): name one that Python can import from here."
            ) from None
