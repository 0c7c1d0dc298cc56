"""The Vision Transformer (Dosovitskiy et al., 2021) and DeiT (Touvron et al., 2021), as timm has
them."""

import re
from collections.abc import Mapping
from typing import Any

from jaxbig.errors import Refused
from jaxbig.models.vit import ViT
from jaxbig.pretrained.families.vit import PATCHES, POSITIONS, image_side
from jaxbig.pretrained.family import field_values, in_blocks
from jaxbig.pretrained.timm_family import TimmFamily
from jaxbig.pretrained.weight_table import Row, Shape

SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
POOLING = {"token": "token", "avg": "average"}
BLOCK = (
    Row("attention_norm/scale", "norm1.weight"),
    Row("attention_norm/bias", "norm1.bias"),
    Row("attention/query/kernel", "attn.qkv.weight", "(0 h k) d -> d h k"),
    Row("attention/key_value/kernel", "attn.qkv.weight", "(1 h k) d -> d 0 h k"),
    Row("attention/key_value/kernel", "attn.qkv.weight", "(2 h k) d -> d 1 h k"),
    Row("attention/query/bias", "attn.qkv.bias", "(0 h k) -> h k"),
    Row("attention/key_value/bias", "attn.qkv.bias", "(1 h k) -> 0 h k"),
    Row("attention/key_value/bias", "attn.qkv.bias", "(2 h k) -> 1 h k"),
    Row("attention/out/kernel", "attn.proj.weight", "d (h k) -> h k d"),
    Row("attention/out/bias", "attn.proj.bias"),
    Row("attention_scale", "ls1.gamma"),
    Row("mlp_norm/scale", "norm2.weight"),
    Row("mlp_norm/bias", "norm2.bias"),
    Row("up/kernel", "mlp.fc1.weight", "f d -> d f"),
    Row("up/bias", "mlp.fc1.bias"),
    Row("down/kernel", "mlp.fc2.weight", "d f -> f d"),
    Row("down/bias", "mlp.fc2.bias"),
    Row("mlp_scale", "ls2.gamma"),
)


class TimmViT(TimmFamily):
    """ViT, DeiT and DeiT III: with or without a class token, pooled or not, with layer scale."""

    model_type = "timm_vit"
    module = ViT
    architectures = r"(vit|deit|deit3)_(tiny|small|medium|base|large|huge)_patch(\d+)_(\d+)"
    pool = "token"
    first = "patch_embed.proj"
    plain = {
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "init_values": None,
        "class_token": True,
        "no_embed_class": False,
        "fc_norm": None,
    }
    of_heads = ("classes", "pooling", "norm_after_pooling")

    def of_architecture(self, match: re.Match[str]) -> dict[str, Any]:
        kind, size, patch, _ = match.groups()
        third = {"no_embed_class": True, "init_values": 1e-6} if kind == "deit3" else {}
        return {**SIZES[size], "patch_size": int(patch), **third}

    def of_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        a = arguments
        pool = a["global_pool"]
        if pool not in POOLING:
            raise Refused(f"config.json has global_pool {pool!r}: jaxbig has {', '.join(POOLING)}.")
        token = bool(a["class_token"])
        return {
            "patch": a["patch_size"],
            "depth": a["depth"],
            "width": a["embed_dim"],
            "heads": a["num_heads"],
            "mlp_width": int(a["embed_dim"] * a["mlp_ratio"]),
            "qkv_bias": bool(a["qkv_bias"]),
            "layer_scale": a["init_values"],
            "pooling": POOLING[pool],
            "class_token": None if token == (pool == "token") else token,
            "token_position": not a["no_embed_class"],
            "norm_after_pooling": pool == "avg" if a["fc_norm"] is None else bool(a["fc_norm"]),
        }

    def arguments(self, model: Any) -> tuple[str, dict[str, Any]]:
        pools = {ours: theirs for theirs, ours in POOLING.items()}
        if model.pooling not in pools:
            raise Refused(f"it has pooling {model.pooling!r}")
        token = model.pooling == "token" if model.class_token is None else model.class_token
        return f"vit_base_patch{16 if model.patch != 32 else 32}_224", {
            "patch_size": model.patch,
            "embed_dim": model.width,
            "depth": model.depth,
            "num_heads": model.heads,
            "mlp_ratio": field_values(model)["mlp_width"] / model.width,
            "qkv_bias": model.qkv_bias is not False,
            "init_values": model.layer_scale,
            "class_token": token,
            "no_embed_class": not model.token_position,
            "fc_norm": model.norm_after_pooling,
            "global_pool": pools[model.pooling],
        }

    def sizes(self, arguments: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, int]:
        patch, _, channels, _ = shapes["patches/kernel"]
        of_token = arguments["class_token"] and not arguments["no_embed_class"]
        patches = shapes["positions/embedding"][0] - of_token
        return {"in_chans": channels, "img_size": image_side(patches, patch)}

    def rows(self, model: Any) -> list[Row]:
        return [
            Row("token", "cls_token"),
            Row("positions/embedding", "pos_embed", POSITIONS),
            Row("patches/kernel", "patch_embed.proj.weight", PATCHES),
            Row("patches/bias", "patch_embed.proj.bias"),
            *in_blocks("blocks", "blocks.*", BLOCK),
            Row("blocks/norm/scale", "norm.weight"),
            Row("blocks/norm/bias", "norm.bias"),
            Row("norm/scale", "fc_norm.weight"),
            Row("norm/bias", "fc_norm.bias"),
            Row("head/kernel", "head.weight", "c d -> d c"),
            Row("head/bias", "head.bias"),
        ]
