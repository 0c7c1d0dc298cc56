"""The Vision Transformer (Dosovitskiy et al., 2021), as transformers has it."""

import math
from collections.abc import Mapping
from typing import Any

from jaxbig.errors import Refused
from jaxbig.models.vit import ViT
from jaxbig.pretrained.family import Config, Family, count_classes, in_blocks, numbered_classes
from jaxbig.pretrained.weight_table import Row, Shape

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
ACTIVATIONS |= {"relu": "relu"}
PATCHES = "d c y x -> y x c d"
POSITIONS = "0 n d -> n d"
BLOCK = (
    Row("attention_norm/scale", "layernorm_before.weight"),
    Row("attention_norm/bias", "layernorm_before.bias"),
    Row("attention/query/kernel", "attention.attention.query.weight", "(h k) d -> d h k"),
    Row("attention/query/bias", "attention.attention.query.bias", "(h k) -> h k"),
    Row("attention/key_value/kernel", "attention.attention.key.weight", "(h k) d -> d 0 h k"),
    Row("attention/key_value/bias", "attention.attention.key.bias", "(h k) -> 0 h k"),
    Row("attention/key_value/kernel", "attention.attention.value.weight", "(h k) d -> d 1 h k"),
    Row("attention/key_value/bias", "attention.attention.value.bias", "(h k) -> 1 h k"),
    Row("attention/out/kernel", "attention.output.dense.weight", "d (h k) -> h k d"),
    Row("attention/out/bias", "attention.output.dense.bias"),
    Row("mlp_norm/scale", "layernorm_after.weight"),
    Row("mlp_norm/bias", "layernorm_after.bias"),
    Row("up/kernel", "intermediate.dense.weight", "f d -> d f"),
    Row("up/bias", "intermediate.dense.bias"),
    Row("down/kernel", "output.dense.weight", "d f -> f d"),
    Row("down/bias", "output.dense.bias"),
)


class VisionTransformer(Family):
    """ViT with a class token and a classifier; a pooler is left out."""

    model_type = "vit"
    module = ViT
    same = {
        "depth": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "patch": "patch_size",
        "epsilon": "layer_norm_eps",
        "qkv_bias": "qkv_bias",
    }
    words = {"activation": ("hidden_act", ACTIVATIONS)}
    defaults = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "patch_size": 16, "qkv_bias": True}
    prefix = "vit."
    left_out = (r"vit\.pooler\..*", r"classifier\..*")
    heads = ("head/.*",)
    image_processor = "ViTImageProcessor"

    def fields(self, config: Config) -> dict[str, Any]:
        return {**super().fields(config), "classes": count_classes(config)}

    def config(self, model: Any) -> Config:
        return {**super().config(model), **numbered_classes(model.classes)}

    def complete(self, config: Config, shapes: Mapping[str, Shape]) -> Config:
        patch, _, channels, _ = shapes["patches/kernel"]
        side = image_side(shapes["positions/embedding"][0] - 1, patch)
        return {**config, "image_size": side, "num_channels": channels}

    def architecture(self, model: Any) -> str:
        return "ViTForImageClassification"

    def rows(self, model: Any) -> list[Row]:
        return [
            Row("token", "vit.embeddings.cls_token"),
            Row("positions/embedding", "vit.embeddings.position_embeddings", POSITIONS),
            Row("patches/kernel", "vit.embeddings.patch_embeddings.projection.weight", PATCHES),
            Row("patches/bias", "vit.embeddings.patch_embeddings.projection.bias"),
            *in_blocks("blocks", "vit.encoder.layer.*", BLOCK),
            Row("blocks/norm/scale", "vit.layernorm.weight"),
            Row("blocks/norm/bias", "vit.layernorm.bias"),
            Row("head/kernel", "classifier.weight", "c d -> d c"),
            Row("head/bias", "classifier.bias"),
        ]


def image_side(patches: int, patch: int) -> int:
    """The side of the square image with this many patches; raises `Refused` if there is none."""
    side = math.isqrt(patches)
    if side**2 != patches:
        raise Refused(f"it has positions of {patches} patches, which are no square image")
    return side * patch
