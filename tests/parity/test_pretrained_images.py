"""Pretrained image models in and out: the same logits as transformers and timm, the same bits
again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.inference.export import write_weights
from jaxbig.pretrained.load import Loaded, Pretrained, load, open_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
torch.set_num_threads(1)

VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 28,
    "image_size": 21,
    "patch_size": 7,
    "num_labels": 5,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [2, 1], "num_labels": 5}
BASIC = {"layer_type": "basic", "hidden_sizes": [8, 16], "num_channels": 1}
CONVNEXT = {"hidden_sizes": [8, 12], "depths": [1, 2], "num_stages": 2, "num_labels": 5}
TIMM_VIT = {"embed_dim": 12, "depth": 2, "num_heads": 3, "img_size": 21, "patch_size": 7}
TIMM_DEEP = {"layers": (1, 2, 1, 1), "channels": (8, 16, 32, 64), "stem_width": 4}
TIMM_NEXT = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20)}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A model of transformers, whose name is a class, or of timm, whose name is an architecture."""

    name: str
    fields: Mapping[str, Any]
    side: int = 21
    """Of an image, in pixels."""

    def make(self) -> Any:
        if not self.name[0].isupper():
            return timm.create_model(self.name, num_classes=5, **self.fields).eval()
        config = getattr(transformers, f"{self.name}Config")(**self.fields)
        return getattr(transformers, f"{self.name}ForImageClassification")(config).eval()

    def save(self, model: Any, folder: Path) -> None:
        if self.name[0].isupper():
            model.save_pretrained(folder)
        else:
            timm.models.save_for_hf(
                model, folder, model_args=dict(self.fields), safe_serialization=True
            )

    def read(self, folder: Path) -> Any:
        if not self.name[0].isupper():
            return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        kind = getattr(transformers, f"{self.name}ForImageClassification")
        model, info = kind.from_pretrained(folder, output_loading_info=True)
        left = {name for name in info["missing_keys"] if "num_batches_tracked" not in name}
        assert not left and not info["unexpected_keys"]
        return model.eval()


MODELS = {
    "vit": Reference("ViT", VIT),
    "vit, no qkv bias": Reference("ViT", VIT | {"qkv_bias": False, "num_channels": 1}),
    "resnet": Reference("ResNet", RESNET, 37),
    "resnet, v1": Reference("ResNet", RESNET | {"downsample_in_bottleneck": True}, 37),
    "resnet, basic": Reference("ResNet", RESNET | BASIC, 45),
    "convnext": Reference("ConvNext", CONVNEXT, 37),
    "convnext, no scale": Reference("ConvNext", CONVNEXT | {"layer_scale_init_value": 0.0}, 41),
    "timm vit": Reference("vit_tiny_patch16_224", TIMM_VIT),
    "timm vit, average": Reference(
        "vit_base_patch32_224", TIMM_VIT | {"global_pool": "avg", "qkv_bias": False, "in_chans": 1}
    ),
    "timm vit, average without token": Reference(
        "vit_base_patch16_224",
        TIMM_VIT | {"global_pool": "avg", "class_token": False, "fc_norm": False},
    ),
    "timm deit3": Reference("deit3_small_patch16_224", TIMM_VIT | {"mlp_ratio": 1.75}),
    "timm resnet": Reference("resnet18", {"layers": (1, 1, 1, 1), "in_chans": 1}, 45),
    "timm resnet-d": Reference("resnet26d", TIMM_DEEP, 53),
    "timm resnet-c, basic": Reference("resnet18", TIMM_DEEP | {"stem_type": "deep"}, 45),
    "timm convnext": Reference("convnext_small", TIMM_NEXT, 45),
}


def randomized(model: Any) -> Any:
    """The model with no bias 0, no scale 1, and statistics as of a trained one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, each in [*model.named_parameters(), *model.named_buffers()]:
            if "num_batches" not in name:
                each.add_(torch.randn(each.shape) * 0.1)
            if "var" in name:
                each.abs_().add_(0.5)
    return model


def images(reference: Reference, model: Any) -> np.ndarray:
    channels = next(each for each in model.parameters() if each.ndim == 4).shape[1]
    shape = (2, reference.side, reference.side, channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def theirs(model: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        outputs = model(torch.tensor(x.transpose(0, 3, 1, 2)))
    return getattr(outputs, "logits", outputs).numpy()


def abstract(model: nn.Module, x: np.ndarray) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves of a model on the first device, by their path in a state."""
    variables = dict(nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), x))))
    params = variables.pop("params")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for path, leaf in flatten_with_paths({"params": params, "variables": variables}).items()
    }


def read(folder: Path, x: np.ndarray) -> tuple[Pretrained, Any, Loaded]:
    """A folder, our model of it, and its leaves."""
    source = open_pretrained(folder)
    model = source.family.module(**source.fields)
    assert source.differences(model) == []
    loaded = load(source, model, abstract(model, x))
    assert loaded.fresh == () == loaded.left_out
    return source, model, loaded


def ours(model: Any, loaded: Loaded, x: np.ndarray) -> np.ndarray:
    tree = unflatten_dict(loaded.leaves, sep="/")
    variables = {"params": tree["params"], **tree.get("variables", {})}
    return np.asarray(jax.jit(model.apply)(variables, jnp.asarray(x)))


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("name", MODELS)
def test_imported_images_give_their_logits_and_are_exported_to_the_same(
    name: str, tmp_path: Path
) -> None:
    reference = MODELS[name]
    made = randomized(reference.make())
    reference.save(made, tmp_path / "theirs")
    x = images(reference, made)
    expected = theirs(made, x)
    source, model, loaded = read(tmp_path / "theirs", x)
    assert np.abs(expected).max() > 0.1 and np.std(expected[0] - expected[1]) > 1e-3
    np.testing.assert_allclose(ours(model, loaded, x), expected, rtol=0, atol=1e-4)
    (tmp_path / "ours").mkdir()
    write_weights(model, loaded.leaves, tmp_path / "ours", source.family, config={})
    again = reference.read(tmp_path / "ours")
    np.testing.assert_allclose(theirs(again, x), expected, rtol=0, atol=1e-4)
    _, same, back = read(tmp_path / "ours", x)
    assert same == model
    for path, leaf in loaded.leaves.items():
        np.testing.assert_array_equal(leaf, back.leaves[path])
