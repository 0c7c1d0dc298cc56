"""Lets worker processes import the modules of the run that started them.

A worker is sent objects of these modules. An experiment's file is loaded under a name that no
Python could import, from a folder that is not on `sys.path`.
"""

import importlib
import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

SCRIPT = "jaxbig_script"  # no other module has this name
ModuleFiles = dict[str, tuple[str | None, list[str]]]
"""For each module its file, and a package's folders."""


def loaded_modules() -> ModuleFiles:
    """The modules of this process."""
    specs = {name: getattr(module, "__spec__", None) for name, module in sys.modules.items()}
    files: ModuleFiles = {}
    for name, spec in specs.items():
        if isinstance(spec, ModuleSpec):
            file = spec.origin if spec.has_location else None
            files[name] = file, list(spec.submodule_search_locations or [])
    files[SCRIPT] = getattr(sys.modules["__main__"], "__file__", None), []
    return files


def install_import_hook(files: ModuleFiles) -> None:
    """Makes these modules importable in this process, if they are not found otherwise."""
    sys.meta_path.append(ModuleFinder(files))  # type: ignore[arg-type]
    sys.modules["__main__"] = LazyScript("__main__")


class ModuleFinder:
    """Finds modules in known files."""

    def __init__(self, files: ModuleFiles):
        self.files = files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        file, folders = self.files.get(name, (None, []))
        if file:
            return importlib.util.spec_from_file_location(
                name, file, submodule_search_locations=folders or None
            )
        if not folders:
            return None
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = folders
        return spec


class LazyScript(types.ModuleType):
    """The script that the run is; loaded, not run as `__main__`, when an attribute is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(SCRIPT), name)
