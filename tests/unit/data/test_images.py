"""The input of image models: augmentation depends only on the seed, the step and the example."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.discover import load
from jaxbig.config.experiment import Experiment
from jaxbig.data.core.dataset import Batch
from jaxbig.data.images import Images
from jaxbig.data.pipeline.loader import train_batch
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.transforms.augment import (
    CentralCrop,
    CutMix,
    Either,
    Erasing,
    Flip,
    Mixup,
    ResizedCrop,
)
from jaxbig.data.transforms.randaugment import RandAugment
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Failed, Refused
from jaxbig.objectives.classification import Classification
from jaxbig.program.gradient import make_gradient
from jaxbig.program.program import make_program
from jaxbig.train.passes import evaluate

CLASSES = 3
DATA = Images(
    records=Synthetic(images=("image",), labels=(("label", CLASSES),)),
    batch=16,
    size=8,
    classes=CLASSES,
    canvas=24,
    augment=(ResizedCrop(least=0.3), Flip(), Erasing()),
    center=(CentralCrop(),),
    mix=(Either(first=Mixup(), second=CutMix()),),
)


def experiment(data: Images = DATA, **changes: Any) -> Experiment:
    """Without dropout, which draws separately for each part of a batch."""
    parent = small("digits_convnet")
    model: Any = parent.model
    layers = tuple(layer for layer in model.layers if not hasattr(layer, "rate"))
    model = dataclasses.replace(model, layers=layers, classes=CLASSES)
    few = {"model": model, "data": data, "objective": Classification(classes=CLASSES)}
    return dataclasses.replace(parent, **(few | changes))


def batch_of(data: Images, step: int = 0) -> dict[str, np.ndarray]:
    return train_batch(data.source("train"), step, seed=0, batch=data.batch)


def gradient(experiment: Experiment, devices: int, step: int = 0) -> dict[str, np.ndarray]:
    program = make_program(experiment, jax.devices()[:devices])
    with program.activate():
        state = program.init()
        find = jax.jit(make_gradient(experiment, program.mesh))
        rows = device_put_batch(batch_of(experiment.data), program.mesh)  # type: ignore[arg-type]
        found, _, _ = find(state.params, state.variables, rows, jnp.int32(step))
    return {path: np.asarray(leaf) for path, leaf in flatten_with_paths(found).items()}


def apart(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    return max(
        float(np.linalg.norm(first[p] - second[p]) / np.linalg.norm(first[p])) for p in first
    )


@pytest.mark.slow
def test_augmentation_does_not_depend_on_parts_chunks_and_devices() -> None:
    alone = gradient(experiment(mesh=Mesh(data=1)), 1)
    for changes, devices in [
        ({"accumulate": 4, "mesh": Mesh(data=1)}, 1),
        ({"mesh": Mesh(data=2, fsdp=2, tensor=2)}, 8),
        ({"reproducible": 4, "mesh": Mesh(data=2)}, 2),
    ]:
        assert apart(alone, gradient(experiment(**changes), devices)) < 1e-4, changes
    assert apart(alone, gradient(experiment(mesh=Mesh(data=1)), 1, step=1)) > 1e-2


@pytest.mark.slow
def test_reproducible_chunks_have_the_same_bits_on_any_devices() -> None:
    one, four = (gradient(experiment(reproducible=8, mesh=Mesh(data=n)), n) for n in (2, 4))
    assert all(np.array_equal(one[path], four[path]) for path in one)


def transformed(data: Images, seed: int, train: bool, batch: Batch | None = None) -> Batch:
    keys = jax.random.split(jax.random.key(seed), data.batch)
    return jax.jit(lambda batch: data.transform(batch, keys, train))(batch or batch_of(data))


def test_training_is_random_by_key_and_evaluation_is_not_random() -> None:
    first, again, other = (transformed(DATA, seed, True) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.allclose(first["inputs"], other["inputs"])
    assert first["inputs"].shape == (16, 8, 8, 3) and first["targets"].shape == (16, CLASSES)
    np.testing.assert_allclose(np.sum(first["targets"], 1), 1, rtol=1e-6)
    calm, also = (transformed(DATA, seed, False) for seed in (0, 1))
    assert np.array_equal(calm["inputs"], also["inputs"]) and calm["targets"].shape == (16,)


def test_batch_is_float32_when_x64_is_enabled() -> None:
    data = dataclasses.replace(DATA, batch=2, augment=(*DATA.augment, RandAugment(layers=1)))
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 2)
        seen = jax.eval_shape(lambda batch: data.transform(batch, keys, True), batch_of(data))
    assert {name: each.dtype for name, each in seen.items()} == dict.fromkeys(
        ("inputs", "targets", "mask"), "float32"
    )


def test_evaluation_uses_unmixed_targets() -> None:
    program = make_program(experiment(mesh=Mesh(data=1)), jax.devices()[:1])
    with program.activate():
        means = evaluate(program, program.init(), DATA.source("eval"))
    assert set(means) == {"loss", "accuracy"} and 0 <= means["accuracy"] <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augment": (Flip(),)}, ("canvas of 24", "put a crop")),
        ({"augment": (ResizedCrop(size=5),)}, ("5 x 5", "--data.size is 8")),
    ],
    ids=["no crop", "another size"],
)
def test_images_of_wrong_final_size_are_refused(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(Refused) as refused:
        transformed(dataclasses.replace(DATA, **changes), 0, True)
    assert all(word in str(refused.value) for word in words), refused.value


class Broken(Synthetic):
    def open(self, split: str) -> Any:
        records = [dict(record) for record in super().open(split)]
        records[1]["image"] = records[1]["image"][:200]  # cut short
        records[2]["image"] = b"no image"
        records[3].pop("label")
        return records


def test_smaller_images_have_a_smaller_canvas_unless_a_crop_has_its_own_size() -> None:
    images = load("imagenet_resnet50").data
    assert isinstance(images, Images)
    found = images.smaller(96)
    assert (images.size, images.canvas) == (224, 384) and (found.size, found.canvas) == (96, 164)
    assert images.smaller(300) == images
    cropped = dataclasses.replace(images, augment=(ResizedCrop(size=224),))
    assert cropped.smaller(96) == cropped


def test_broken_image_is_named_or_skipped() -> None:
    broken = Broken(images=("image",), labels=(("label", CLASSES),))
    with pytest.raises(Failed, match=r"record [123] cannot be read.*--data.skip-bad-records"):
        dataclasses.replace(DATA, records=broken).source("train").rows(np.arange(6))
    for canvas in (0, 24):
        data = dataclasses.replace(DATA, records=broken, canvas=canvas)
        with pytest.raises(
            Failed, match=r"record 2 .*: it is not a complete image: cannot identify image file;"
        ):
            data.source("train").rows(np.array([2]))
    rows = (
        dataclasses.replace(DATA, records=broken, skip_bad_records=3)
        .source("train")
        .rows(np.arange(6))
    )
    assert rows["mask"].tolist() == [1, 0, 0, 0, 1, 1]
    assert np.isfinite(
        transformed(dataclasses.replace(DATA, batch=6), 0, True, rows)["inputs"]
    ).all()
