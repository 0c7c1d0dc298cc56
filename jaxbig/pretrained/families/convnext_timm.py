"""ConvNeXt (Liu et al., 2022), as timm has it."""

import re
from collections.abc import Mapping
from typing import Any

from jaxbig.errors import Refused
from jaxbig.models.convnext import ConvNeXt
from jaxbig.pretrained.families.convnext import layer, rows_of_stages
from jaxbig.pretrained.families.resnet import CONVOLUTION
from jaxbig.pretrained.timm_family import TimmFamily
from jaxbig.pretrained.weight_table import Row, Shape

SMALL = (3, 3, 27, 3)
SIZES = {
    "tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "small": {"depths": SMALL, "dims": (96, 192, 384, 768)},
    "base": {"depths": SMALL, "dims": (128, 256, 512, 1024)},
    "large": {"depths": SMALL, "dims": (192, 384, 768, 1536)},
    "xlarge": {"depths": SMALL, "dims": (256, 512, 1024, 2048)},
}
STAGES = 4
BLOCK = (
    *layer("depthwise", "conv_dw", CONVOLUTION),
    *layer("norm", "norm"),
    *layer("up", "mlp.fc1", "o i -> i o"),
    *layer("down", "mlp.fc2", "o i -> i o"),
    Row("layer_scale", "gamma"),
)


class TimmConvNext(TimmFamily):
    """ConvNeXt of the sizes of its paper, or of any other."""

    model_type = "timm_convnext"
    module = ConvNeXt
    architectures = r"convnext_(tiny|small|base|large|xlarge)"
    classifier = "head.fc"
    first = "stem.0"
    plain = {"ls_init_value": 1e-6}

    def of_architecture(self, match: re.Match[str]) -> dict[str, Any]:
        return dict(SIZES[match[1]])

    def of_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if arguments["global_pool"] != "avg":
            raise Refused(
                f"config.json has global_pool {arguments['global_pool']!r}: jaxbig has avg alone."
            )
        return {
            "stages": tuple(arguments["depths"]),
            "widths": tuple(arguments["dims"]),
            "layer_scale": arguments["ls_init_value"],
        }

    def arguments(self, model: Any) -> tuple[str, dict[str, Any]]:
        if model.layer_scale is None:
            raise Refused("it has layer_scale None")
        return "convnext_tiny", {
            "depths": list(model.stages),
            "dims": list(model.widths),
            "ls_init_value": model.layer_scale,
        }

    def sizes(self, arguments: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, int]:
        return {"in_chans": shapes["stem/kernel"][2]}

    def rows(self, model: Any) -> list[Row]:
        return [
            *layer("stem", "stem.0", CONVOLUTION),
            *layer("stem_norm", "stem.1"),
            *rows_of_stages(model, "stages", ("downsample", "blocks"), BLOCK),
            *layer("norm", "head.norm"),
            *layer("head", "head.fc", "c d -> d c"),
        ]
