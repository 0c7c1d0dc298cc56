"""Finding and loading experiments: files by name or path, and folders of runs."""

import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxbig.config.deserialize import FILE, load_run
from jaxbig.config.experiment import Experiment
from jaxbig.config.experiment_files import available, run_folder
from jaxbig.errors import Refused


def find(name: str) -> types.ModuleType:
    """The module of an experiment.

    Args:
      name: a name that `jaxbig list` shows, a `.py` path, or a module's dotted name.

    Raises:
      Refused: if there is none; the message has the nearest names.
    """
    known = available()
    if run_folder(name):
        raise Refused(f"{name} is a run's folder, which has no functions: name an experiment.")
    if name in known or name.endswith(".py"):
        return import_file(known.get(name, Path(name)))
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return import_dotted(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(near)}" if near else "`jaxbig list` names them"
    raise Refused(f"no experiment named {name!r}: {hint}.")


def load(name: str) -> Experiment:
    """An experiment, with the options of its run where a run's folder is named.

    Args:
      name: as for `find`, or a run's folder.

    Raises:
      Refused: if there is none, or it is no experiment.
    """
    if run_folder(name):
        return load_run(name)
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
def importing(*first: Path, last: Sequence[Path] = ()) -> Iterator[None]:
    """A context in which modules of these folders can be imported.

    Args:
      *first: folders whose modules come before all others, those of the first one first.
      last: folders whose modules come after all others.

    Raises:
      Refused: for a syntax error, with its file and line.
    """
    before = [str(folder.resolve()) for folder in first]
    after = [str(folder.resolve()) for folder in last]
    sys.path[:0] = before
    sys.path += after
    try:
        yield
    except SyntaxError as error:
        raise Refused(f"{error.filename} line {error.lineno}: {error.msg}.") from None
    finally:
        for folder in before:
            if folder in sys.path:
                sys.path.remove(folder)
        for folder in after:
            if folder in sys.path:
                del sys.path[-1 - sys.path[::-1].index(folder)]


def import_file(path: Path) -> types.ModuleType:
    """Runs a `.py` file as a module.

    It can import modules in its folder and in the current folder. If it is in a package, it can
    import modules of the package too, by their full or relative names.
    """
    if not path.is_file() or path.suffix != ".py":
        raise Refused(
            f"no experiment file {path}: name a .py file, or one of those that `jaxbig list` shows."
        )
    root, package = package_of(path)
    roots = [root] if package and str(root.resolve()) not in sys.path else []
    with importing(path.parent, *roots, last=[Path.cwd()]):
        name = f"{FILE}{path.stem}"
        if package and path.resolve().parent in package_folders(package):
            name = f"{package}.{name}"
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look for it there
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            if error.name not in ("experiments", "launch"):
                raise
            raise Refused(
                f"{path}: {error}; import what jaxbig ships from jaxbig.{error.name}."
            ) from error
    return module


def package_of(path: Path) -> tuple[Path, str]:
    """The package that a file is in: the folder to import it from, and its dotted name or ""."""
    root = Path(os.path.abspath(path)).parent
    names: list[str] = []
    while root.name.isidentifier() and (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root = root.parent
    return root, ".".join(names)


def package_folders(name: str) -> list[Path]:
    """The folders of the package that Python imports by this name; none if it is no package."""
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # the package exists, but imports what does not
        return []
    return [Path(folder).resolve() for folder in getattr(package, "__path__", [])]


def import_dotted(name: str) -> types.ModuleType:
    """Imports a module by its dotted name, as Python would from the current folder."""
    with importing(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, but imports one that does not
            if Path(name).is_file():
                raise Refused(
                    f"{name} is a file, but neither NAME.py nor a run's folder: give one of these."
                ) from None
            raise Refused(
                f"no module {name!r} ({error}): name one that Python can import from here."
            ) from None
