"""How the tools change a model: by its fields with the usual names, or by methods of its class."""

from typing import Any

import flax.linen as nn
import pytest
from support.experiments import EXPERIMENTS
from support.own_model import Tower

from jaxbig.config.discover import load
from jaxbig.models.base import Model, model_class
from jaxbig.models.language_model import Decoder
from jaxbig.models.resnet import ResNet


class Usual(nn.Module):
    """A plain Flax module with fields of the usual names."""

    width: int = 64
    depth: int = 12
    dtype: str = "float32"
    remat: str = "none"


class Bare(nn.Module):
    """A plain Flax module without any of them."""

    size: int = 3


class BareModel(Model):
    """The same, which inherits the methods."""

    size: int = 3


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_model_that_ships_has_the_methods(name: str) -> None:
    assert isinstance(load(name).model, Model)


def test_decoder_is_changed_by_its_fields() -> None:
    model = Decoder(vocab=9, width=64, mlp_width=96, depth=12, remat_group=4)
    assert model.narrower() == model.clone(width=32, mlp_width=48)
    assert model.clone(mlp_width=95).narrower() is None  # an odd width is not halved
    assert model.shallower(8) == model.clone(depth=8)
    assert model.shallower(3) == model.clone(depth=3, remat_group=1)
    assert model.shallower(99) == model
    assert model.with_dtype("float64") == model.clone(dtype="float64")
    assert model.remat_choices() == ("remat", ("none", "attention", "dots", "projections", "full"))


def test_stages_keep_one_block_each() -> None:
    assert ResNet(classes=3, stages=(3, 4, 6)).shallower(2).stages == (1, 1, 1)


def test_plain_module_is_changed_by_its_fields() -> None:
    model = Usual()
    methods = model_class(model)
    assert methods.narrower(model) == model.clone(width=32)
    assert methods.shallower(model, 3) == model.clone(depth=3)
    assert methods.with_dtype(model, "float64") == model.clone(dtype="float64")
    assert methods.remat_choices(model) == Decoder(vocab=9).remat_choices()


@pytest.mark.parametrize("model", [Bare(), BareModel()], ids=repr)
def test_model_without_usual_fields_is_not_changed(model: Any) -> None:
    methods = model_class(model)
    assert methods.narrower(model) is None
    assert methods.shallower(model, 3) == model
    assert methods.with_dtype(model, "float64") is None
    assert methods.remat_choices(model)[1] == ()


def test_model_with_names_of_its_own_is_changed_by_its_methods() -> None:
    model = Tower()
    methods = model_class(model)
    assert methods.narrower(model).units == 2048
    assert methods.shallower(model, 3).blocks == 3
    assert methods.with_dtype(model, "float64").number_type == "float64"
    assert methods.remat_choices(model) == ("recompute", (False, True))
