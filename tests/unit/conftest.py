"""The run that the tests of the Python API train."""

from collections.abc import Callable
from typing import Any

import pytest
from support.experiments import small

import jaxbig as jb


@pytest.fixture(scope="session")
def tiny() -> Callable[..., jb.Experiment]:
    """A function: six steps on digits of a model that compiles at once, with changed fields."""

    def make(**changes: Any) -> jb.Experiment:
        fields: dict[str, Any] = {
            "model": jb.models.ConvNet(layers=(jb.models.Dense(16),), classes=10),
            "steps": 6,
            "evaluate_every": 3,
            "checkpoint_every": 3,
            "log_every": 2,
        }
        return small("digits_convnet", **{**fields, **changes})

    return make
