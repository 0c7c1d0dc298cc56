"""Configs of image models that jaxbig has nothing for, and models that other libraries do not have,
are refused by name."""

from typing import Any

import pytest

import jaxbig as jb
from jaxbig.models.resnet import ResNet
from jaxbig.pretrained.families.vit import image_side
from jaxbig.pretrained.find_family import family_of_model, find_family

VIT = {"model_type": "vit", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
VIT |= {"intermediate_size": 24}
CONFIGS = {
    "stages that do not double": (
        {"model_type": "resnet", "hidden_sizes": [256, 512, 512], "depths": [1, 1, 1]},
        r"hidden_sizes \[256, 512, 512\]: of these fields jaxbig has \[256, 512, 1024\] alone",
    ),
    "a stride before the first stage": (
        {"model_type": "resnet", "downsample_in_first_stage": True},
        "downsample_in_first_stage True: of resnet jaxbig has False alone",
    ),
    "other patches": ({"model_type": "convnext", "patch_size": 2}, "patch_size 2: of convnext"),
    "another activation": (VIT | {"hidden_act": "silu"}, "hidden_act 'silu': .* jaxbig has 'gelu'"),
    "registers": (
        {"architecture": "vit_base_patch16_224", "model_args": {"reg_tokens": 4}},
        "model_args reg_tokens 4: of vit_base_patch16_224 jaxbig knows mlp_ratio,",
    ),
    "another pool of timm": (
        {"architecture": "vit_base_patch16_224", "global_pool": "map"},
        "global_pool 'map': jaxbig has token, avg",
    ),
    "a narrow stem": (
        {"architecture": "resnet50", "model_args": {"channels": [32, 64, 128, 256]}},
        r"stem_type '' of 64 channels, channels \[32, 64, 128, 256\]",
    ),
    "an unknown architecture": (
        {"architecture": "swin_tiny_patch4_window7_224"},
        "model_type 'swin_tiny_patch4_window7_224': jaxbig reads .*timm_vit",
    ),
}
SMALL = ResNet(classes=3, stages=(1, 1), stem="small")
MODELS = {
    "a stem for small images": (SMALL, "ResNet, .*stem: 'imagenet' there, 'small' here"),
    "group norm": (ResNet(classes=3, norm="group"), "norm: 'batch' there, 'group' here"),
    "fixed positions": (jb.models.ViT(classes=3, positions="sincos"), "there, 'sincos' here"),
    "no family": (
        jb.models.MLP(),
        "the model, a MLP, is of no family that Hugging Face has: --for",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_that_jaxbig_has_no_model_for_is_refused_by_name(name: str) -> None:
    config, message = CONFIGS[name]
    with pytest.raises(jb.Refused, match=message):
        find_family(config).fields(config)


@pytest.mark.parametrize("name", MODELS)
def test_model_that_other_libraries_do_not_have_is_refused_by_name(name: str) -> None:
    model, message = MODELS[name]
    with pytest.raises(jb.Refused, match=message):
        family_of_model(model)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("vit_small_patch16_224", {"width": 384, "heads": 6, "depth": 12, "pooling": "token"}),
        ("deit3_base_patch16_224", {"width": 768, "layer_scale": 1e-6, "token_position": False}),
        ("resnet50d", {"stages": (3, 4, 6, 3), "stem": "deep", "shortcut": "pooled"}),
        ("resnet34", {"stages": (3, 4, 6, 3), "bottleneck": False, "stem": "imagenet"}),
        ("convnext_base", {"stages": (3, 3, 27, 3), "widths": (128, 256, 512, 1024)}),
    ],
)
def test_architecture_of_timm_gives_the_fields(architecture: str, fields: dict[str, Any]) -> None:
    found = find_family({"architecture": architecture}).fields({"architecture": architecture})
    assert {name: found[name] for name in fields} == fields and found["classes"] == 1000


def test_positions_of_no_square_image_are_refused() -> None:
    assert image_side(9, 7) == 21
    with pytest.raises(jb.Refused, match="positions of 12 patches, which are no square image"):
        image_side(12, 7)
