"""How a worker finds the modules of the run that started it, whose objects it is sent: an experiment's file is loaded
under a name that no Python could import, from a folder that is on no path."""

import importlib
import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

SCRIPT = "jaxbig_script"  # no other module's name
Files = dict[str, tuple[str | None, list[str]]]
"""The file of each module, and a package's folders."""


def loaded() -> Files:
    """The modules of this process."""
    specs = {name: getattr(each, "__spec__", None) for name, each in sys.modules.items()}
    files = {
        name: (
            spec.origin if spec.has_location else None,
            list(spec.submodule_search_locations or []),
        )
        for name, spec in specs.items()
        if isinstance(spec, ModuleSpec)
    }
    return {**files, SCRIPT: (getattr(sys.modules["__main__"], "__file__", None), [])}


def look_there(files: Files) -> None:
    """Makes them modules of this process too, each when it is first imported, if it is not found otherwise."""
    sys.meta_path.append(Finder(files))  # type: ignore[arg-type]
    sys.modules["__main__"] = Script("__main__")


class Finder:
    """Finds modules in files that are known."""

    def __init__(self, files: Files):
        self.files = files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        file, folders = self.files.get(name, (None, []))
        if file:
            return importlib.util.spec_from_file_location(
                name, file, submodule_search_locations=folders or None
            )
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = folders
        return spec if folders else None


class Script(types.ModuleType):
    """Stands for the script that the run is; it is read, without being run as one, if something of it is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(SCRIPT), name)
