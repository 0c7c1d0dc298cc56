"""Names and hashes the files of a user's own classes in an experiment, to notice changed ones."""

import hashlib
import inspect
import sys
from pathlib import Path

from jaxbig.config.deserialize import classes_of
from jaxbig.config.experiment import Experiment

KNOWN = {*sys.stdlib_module_names, "jaxbig", "flax"}
"""Packages whose versions a run notes."""


def code_of(experiment: Experiment) -> dict[str, str]:
    """The file of each class that is not jaxbig's, and of each such base class, by its name.

    Returns:
      The file's name and the first 12 digits of its sha256, as `my_model.py 1a2b3c4d5e6f`. A class
      that is in no file, as one of a notebook, is left out.
    """
    classes = list(classes_of(experiment).values())
    if module := getattr(experiment.model, "nnx_class", None):
        classes.append(module)
    found = {}
    for each in classes:
        for base in inspect.getmro(each):
            if base.__module__.split(".")[0] in KNOWN:
                continue
            try:
                file = Path(inspect.getfile(base))
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
            except (OSError, TypeError):  # no file, or one that is gone
                continue
            found[base.__name__] = f"{file.name} {digest[:12]}"
    return dict(sorted(found.items()))
