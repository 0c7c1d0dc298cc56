"""Residual nets (He et al., 2016; 2019), as timm has them."""

import re
from collections.abc import Mapping
from typing import Any

from jaxbig.errors import Refused
from jaxbig.models.resnet import DEPTHS, ResNet
from jaxbig.pretrained.families.resnet import conv_norm
from jaxbig.pretrained.family import FREE
from jaxbig.pretrained.timm_family import TimmFamily
from jaxbig.pretrained.weight_table import Row, Shape

STAGES = 4
THEIR_DEPTHS = {**DEPTHS, 26: ((2, 2, 2, 2), True), 200: ((3, 24, 36, 3), True)}
LETTERS = {
    "": {},
    "c": {"stem_type": "deep", "stem_width": 32},
    "d": {"stem_type": "deep", "stem_width": 32, "avg_down": True},
}


class TimmResNet(TimmFamily):
    """ResNet, and ResNet-C and -D with their deep stems."""

    model_type = "timm_resnet"
    module = ResNet
    architectures = r"resnet(18|26|34|50|101|152|200)([cd]?)"
    free = (*FREE, "groups")
    classifier = "fc"
    first = "conv1"
    plain = {
        "stem_type": "",
        "stem_width": 64,
        "avg_down": False,
        "channels": (64, 128, 256, 512),
        "zero_init_last": True,
    }

    def of_architecture(self, match: re.Match[str]) -> dict[str, Any]:
        layers, bottleneck = THEIR_DEPTHS[int(match[1])]
        return {"layers": layers, "bottleneck": bottleneck, **LETTERS[match[2]]}

    def of_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        a = arguments
        channels = list(a["channels"])
        width = channels[0]
        is_deep = a["stem_type"] == "deep"
        stem = 2 * a["stem_width"] if is_deep else 64
        known = a["stem_type"] in ("", "deep") and a["global_pool"] == "avg"
        if not known or stem != width or channels != [width * 2**n for n in range(STAGES)]:
            raise Refused(
                f"config.json has stem_type {a['stem_type']!r} of {stem} channels, channels "
                f"{channels} and global_pool {a['global_pool']!r}: jaxbig has stems '' and 'deep' "
                f"of the first stage's channels, which double, and avg."
            )
        return {
            "stages": tuple(a["layers"]),
            "bottleneck": a["bottleneck"],
            "stem": "deep" if is_deep else "imagenet",
            "width": width,
            "shortcut": "pooled" if a["avg_down"] else "strided",
        }

    def arguments(self, model: Any) -> tuple[str, dict[str, Any]]:
        if len(model.stages) != STAGES:
            raise Refused(f"it has {len(model.stages)} stages, not {STAGES}")
        if model.stem == "small" or (model.stem == "imagenet" and model.width != 64):
            raise Refused(f"it has stem {model.stem!r} with width {model.width}")
        is_deep = model.stem == "deep"
        return "resnet50" if model.bottleneck else "resnet34", {
            "layers": list(model.stages),
            "channels": [model.width * 2**stage for stage in range(STAGES)],
            "stem_type": "deep" if is_deep else "",
            "stem_width": model.width // 2 if is_deep else 64,
            "avg_down": model.shortcut == "pooled",
        }

    def sizes(self, arguments: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, int]:
        first = "stem_1" if "stem_1/conv/kernel" in shapes else "stem"
        return {"in_chans": shapes[f"{first}/conv/kernel"][2]}

    def rows(self, model: Any) -> list[Row]:
        rows = conv_norm("stem", "conv1", "bn1")
        if model.stem == "deep":
            rows = [
                *conv_norm("stem_1", "conv1.0", "conv1.1"),
                *conv_norm("stem_2", "conv1.3", "conv1.4"),
                *conv_norm("stem", "conv1.6", "bn1"),
            ]
        for stage, blocks in enumerate(model.stages):
            for block in range(blocks):
                ours = f"block_{stage}_{block}"
                theirs = f"layer{stage + 1}.{block}"
                for number in (1, 2, 3):
                    names = f"{theirs}.conv{number}", f"{theirs}.bn{number}"
                    rows += conv_norm(f"{ours}/conv_{number}", *names)
                # a pool comes before, where it shrinks the image or could
                place = 1 if model.shortcut == "pooled" else 0
                down = f"{theirs}.downsample"
                rows += conv_norm(f"{ours}/shortcut", f"{down}.{place}", f"{down}.{place + 1}")
        return [*rows, Row("head/kernel", "fc.weight", "c d -> d c"), Row("head/bias", "fc.bias")]
