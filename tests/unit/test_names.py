"""The names of `import jaxbig as jb`: each is there, and no class is missing."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import pytest

import jaxbig as jb
from jaxbig.config.deserialize import shipped_classes
from jaxbig.config.evaluator import Evaluator
from jaxbig.data.core.dataset import Data, Records
from jaxbig.data.tokenize.tokenizers import Tokenizer
from jaxbig.data.transforms.augment import Augmentation, Mixing
from jaxbig.models.base import Model
from jaxbig.objectives.base import Objective
from jaxbig.optim.optimizers import Optimizer
from jaxbig.optim.schedules import Schedule

GROUPS = {
    "models": (Model,),
    "data": (Data, Records, Tokenizer, Augmentation, Mixing),
    "objectives": (Objective,),
    "optim": (Optimizer, Schedule),
    "evaluators": (Evaluator,),
}
PARTS = {
    "Block",
    "ClassFolder",
    "FunctionPairs",
    "FunctionQuestions",
    "LibraryImports",
    "LibraryQuestions",
    "LinearRecurrentModel",
    "PatchFields",
    "Stack",
    "Summaries",
    "Text",
    "TransformerFields",
}
"""Classes that only other classes are made of."""


def public(bases: Iterable[type]) -> set[str]:
    """The names of the classes of jaxbig that an experiment can have, of some kinds."""
    found = [each for classes in shipped_classes().values() for each in classes]
    return {
        each.__name__
        for each in found
        if issubclass(each, tuple(bases)) and not inspect.isabstract(each)
    }


@pytest.mark.parametrize("group", GROUPS)
def test_every_class_of_an_experiment_is_a_name_of_its_group(group: str) -> None:
    assert public(GROUPS[group]) - set(dir(getattr(jb, group))) <= PARTS


@pytest.mark.parametrize("module", [jb, jb.models, jb.data, jb.objectives, jb.optim, jb.evaluators])
def test_every_name_is_there(module: Any) -> None:
    assert len(dir(module)) > 4
    for name in dir(module):
        assert getattr(module, name) is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda e: e.replace(stepz=1),
        lambda e: e.replace(**{"optimizer.learning_rate.peek": 1.0}),
        lambda e: e.replace(**{"model.layers.40.channels": 8}),
        lambda e: e.replace(**{"steps.x": 8}),
    ],
)
def test_a_field_that_is_not_there_is_refused(make: Any) -> None:
    with pytest.raises(jb.Refused, match="has no field"):
        make(jb.load("digits_convnet"))


def test_a_field_of_a_field_is_replaced_by_its_dotted_name() -> None:
    before = jb.load("digits_convnet")
    after = before.replace(
        steps=7, **{"optimizer.learning_rate.peak": 0.5, "model.layers.0.channels": 8}
    )
    assert (after.steps, before.steps) == (7, 1000)
    layers: Any = after.model
    assert isinstance(layers, nn.Module) and layers.layers[0] == jb.models.Conv(8)
    assert layers.layers[1:] == before.model.layers[1:]  # type: ignore[attr-defined]
    rate = dataclasses.replace(before.optimizer.learning_rate, peak=0.5)  # type: ignore[call-arg]
    assert after.optimizer.learning_rate == rate


def kept_names(owner: type) -> set[str]:
    """The names under which the methods of a class keep something in the instance."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value).startswith("vars(")
        and isinstance(node.slice, ast.Constant)
    }


def test_what_a_data_set_keeps_hides_no_method_of_it() -> None:
    found = [getattr(jb.data, name) for name in jb.data.__all__]
    kept = {
        (owner, name)
        for owner in found
        if inspect.isclass(owner)
        for base in owner.__mro__[:-1]
        for name in kept_names(base)
    }
    assert len(kept) > 10
    assert [each for each in kept if callable(getattr(*each, None))] == []
