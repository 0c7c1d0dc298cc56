"""An experiment from the JSON of a run's `run.json`, made of jaxbig's own classes only."""

import contextlib
import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jaxbig.config.experiment import Experiment
from jaxbig.constraints import annotations_of, settings
from jaxbig.errors import Refused
from jaxbig.system.json_files import read_json, warn_once

ROOMS = ("models", "objectives", "data", "optim", "distributed", "config", "evaluators")
"""The packages of jaxbig that define what an experiment is made of."""
FILE = "jaxbig_experiment_"
"""The module of an experiment's file has this before the file's name: it is no other's name."""
Classes = Mapping[str, Collection[type]]
"""Classes by name; a name is not always unique."""
COPY = "checkpoints/run.json"
"""A second `run.json`, written after the first: one of them is always whole."""


def read_run_file(workdir: Path) -> dict[str, Any] | None:
    """The content of a run's `run.json`, None if there is none; of its copy where it is broken.

    Raises:
      Refused: neither can be read.
    """
    file = workdir / "run.json"
    try:
        return read_description(file)
    except Refused:
        copy = None
        with contextlib.suppress(Refused):
            copy = read_description(workdir / COPY)
        if copy is None:
            raise
        warn_once(f"{file} is broken, as after a power loss: its copy {workdir / COPY} is read.")
        return copy


def read_description(file: Path) -> dict[str, Any] | None:
    """The content of one file, None if it does not exist.

    Raises:
      Refused: jaxbig did not write it.
    """
    run = read_json(file)
    if run is not None and not isinstance(run.get("experiment"), dict):
        raise Refused(not_written(file))
    return run


def not_written(file: Path) -> str:
    """The message of a `run.json` that is none."""
    return f"{file} was not written by jaxbig: bring back a copy, or give another --workdir."


def load_run(workdir: str | Path, own: Iterable[type] = ()) -> Experiment:
    """The experiment of the run in a folder, with the options that it was last started with.

    Args:
      workdir: the run's folder.
      own: the user's own classes in it; none is imported because a folder names it.

    Raises:
      Refused: the folder holds no run, or its experiment cannot be rebuilt.
    """
    run = read_run_file(Path(workdir))
    if run is None:
        raise Refused(
            f"{workdir} is not the folder of a run, which has a file run.json: name one that has, "
            f"an experiment's file ending in .py, or a name that `jaxbig list` shows."
        )
    try:
        return from_run(run, own)
    except Refused as error:
        raise Refused(
            f"the experiment of {workdir} cannot be rebuilt from its run.json: {error}; give the "
            f"experiment's file instead, with the run's options: {experiment_file(run)} --workdir "
            f"{workdir}."
        ) from None


def experiment_file(run: Mapping[str, Any]) -> str:
    """The name of the experiment's file in the content of a `run.json`, or FILE.py."""
    modules = run.get("modules")
    names = modules.values() if isinstance(modules, dict) else ()
    files = [f"{name.split(FILE)[1]}.py" for name in map(str, names) if FILE in name]
    return files[0] if files else "FILE.py"


def from_run(
    run: Mapping[str, Any], own: Iterable[type] = (), *, callbacks: bool = True
) -> Experiment:
    """The experiment in the content of a `run.json`; arguments and errors as of `load_run`.

    callbacks: whether it needs its callbacks; else it has none.
    """
    own = tuple(own)
    known = {each.__name__ for each in own}
    modules = run.get("modules")
    foreign = [
        name
        for name, module in (modules.items() if isinstance(modules, dict) else ())
        if str(module).split(".")[0] != "jaxbig" and name not in known
    ]
    if foreign:
        raise Refused(f"jaxbig does not ship its {', '.join(foreign)}")
    described = run["experiment"]
    return from_json(described if callbacks else {**described, "callbacks": []}, own)


def from_json(described: Any, own: Iterable[type] = ()) -> Experiment:
    """The experiment that `to_json` described; a field that is missing has its default.

    Args:
      described: the JSON of an experiment.
      own: classes that it may consist of besides jaxbig's; they come before those.

    Raises:
      Refused: it has a class, a field or a value that this version of jaxbig does not have.
    """
    classes = {**shipped_classes(), **{each.__name__: (each,) for each in own}}
    experiment = _build(described, {Experiment}, "experiment", classes)
    if not isinstance(experiment, Experiment):
        raise Refused("it is no Experiment")
    return experiment


def modules_of(experiment: Experiment) -> dict[str, str]:
    """The module of each class that an experiment consists of but for callbacks, by its name."""
    return {name: each.__module__ for name, each in classes_of(experiment).items()}


def classes_of(experiment: Experiment) -> dict[str, type]:
    """Each class that an experiment consists of but for callbacks, by its name."""

    def visit(value: Any) -> None:
        if isinstance(value, list | tuple | dict):
            for item in value.values() if isinstance(value, dict) else value:
                visit(item)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            found[type(value).__name__] = type(value)
            for name in settings(value):
                visit(getattr(value, name))

    found: dict[str, type] = {}
    visit(experiment.replace(callbacks=()))
    return dict(sorted(found.items()))


@functools.cache
def shipped_classes() -> Classes:
    """All dataclasses that jaxbig's modules define (a Flax module is one), by name."""
    found: dict[str, list[type]] = {}
    for room in ROOMS:
        package = importlib.import_module(f"jaxbig.{room}")
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for name, each in vars(module).items():
                if not isinstance(each, type) or each.__module__ != module.__name__:
                    continue  # imported there
                if hasattr(each, "__dataclass_fields__"):
                    found.setdefault(name, []).append(each)
    return found


def _build(value: Any, types: Collection[Any], path: str, classes: Classes) -> Any:
    """A field's value from its JSON.

    Args:
      value: the JSON.
      types: all types and literals that occur in the field's annotation.
      path: the field's name, for messages.
      classes: those that a dataclass may have.
    """
    if isinstance(value, list):
        return tuple(_build(item, types, f"{path}.{i}", classes) for i, item in enumerate(value))
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return _instance(value, types, path, classes)
    if isinstance(value, dict):
        return {key: _build(item, types, f"{path}.{key}", classes) for key, item in value.items()}
    if isinstance(value, str) and Path in types and str not in types:
        return Path(value)
    if not _allowed(value, types):
        raise Refused(f"{path} is {value!r}, which this version of jaxbig does not allow")
    return value


def _instance(value: dict[str, Any], types: Collection[Any], path: str, classes: Classes) -> Any:
    """A dataclass from its JSON, as for `_build`."""
    kind = _class_named(value["type"], types, path, classes)
    known = settings(kind)
    annotations = annotations_of(kind)
    fields = {}
    for name, item in value.items():
        if name == "type":
            continue
        if name not in known:
            raise Refused(f"{path}.{name} is a field that this version of jaxbig does not have")
        fields[name] = _build(item, _types(annotations.get(name)), f"{path}.{name}", classes)
    try:
        return kind(**fields)
    except TypeError as error:  # a field without a default is missing
        raise Refused(f"{path} is incomplete: {error}") from None


def _class_named(name: str, types: Collection[Any], path: str, classes: Classes) -> Any:
    """The class of that name which the field's annotation allows."""
    if name not in classes:
        raise Refused(f"{path} is a {name}, which this version of jaxbig does not have")
    bases = tuple(each for each in types if isinstance(each, type)) or (object,)
    found = [each for each in classes[name] if Any in types or issubclass(each, bases)]
    if len(found) != 1:
        raise Refused(f"{path} is a {name}, which it cannot be")
    return found[0]


def _types(annotation: Any) -> set[Any]:
    """All types and literals in an annotation: of `tuple[int, ...] | None`, int and NoneType."""
    if annotation is None:
        return {Any}
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    inner = get_args(annotation)
    return {annotation} if not inner else set().union(*map(_types, inner))


def _allowed(value: Any, types: Collection[Any]) -> bool:
    """Whether a number, text or None is of one of the types, or one of the literals."""
    kinds = tuple(each for each in types if isinstance(each, type))
    if isinstance(value, int) and float in kinds:
        return True
    return Any in types or isinstance(value, kinds) or value in types
