"""ConvNeXt (Liu et al., 2022), as transformers has it."""

from collections.abc import Mapping
from typing import Any

from jaxbig.models.convnext import ConvNeXt
from jaxbig.pretrained.families.resnet import CONVOLUTION
from jaxbig.pretrained.family import Config, Family, count_classes, get, numbered_classes
from jaxbig.pretrained.weight_table import Row, Shape

NAMES = ("downsampling_layer", "layers")
BLOCK = (
    Row("depthwise/kernel", "dwconv.weight", CONVOLUTION),
    Row("depthwise/bias", "dwconv.bias"),
    Row("norm/scale", "layernorm.weight"),
    Row("norm/bias", "layernorm.bias"),
    Row("up/kernel", "pwconv1.weight", "o i -> i o"),
    Row("up/bias", "pwconv1.bias"),
    Row("down/kernel", "pwconv2.weight", "o i -> i o"),
    Row("down/bias", "pwconv2.bias"),
    Row("layer_scale", "layer_scale_parameter"),
)


def layer(ours: str, theirs: str, axes: str = "") -> list[Row]:
    """The rows of a layer of two leaves: a kernel or scale, and a bias."""
    kind = "kernel" if axes else "scale"
    return [Row(f"{ours}/{kind}", f"{theirs}.weight", axes), Row(f"{ours}/bias", f"{theirs}.bias")]


class ConvNext(Family):
    """ConvNeXt with a classifier."""

    model_type = "convnext"
    module = ConvNeXt
    same = {"head_epsilon": "layer_norm_eps"}
    theirs = {"hidden_act": "gelu", "patch_size": 4}
    defaults = {
        "layer_norm_eps": 1e-12,
        "layer_scale_init_value": 1e-6,
        "depths": (3, 3, 9, 3),
        "hidden_sizes": (96, 192, 384, 768),
    }
    prefix = "convnext."
    left_out = (r"classifier\..*",)
    heads = ("head/.*",)
    image_processor = "ConvNextImageProcessor"

    def fields(self, config: Config) -> dict[str, Any]:
        fields = super().fields(config)
        config = {**self.defaults, **config}
        return {
            **fields,
            "stages": tuple(get(config, "depths")),
            "widths": tuple(get(config, "hidden_sizes")),
            "layer_scale": get(config, "layer_scale_init_value") or None,
            "classes": count_classes(config),
        }

    def config(self, model: Any) -> Config:
        return {
            **super().config(model),
            "depths": list(model.stages),
            "hidden_sizes": list(model.widths),
            "num_stages": len(model.stages),
            "layer_scale_init_value": model.layer_scale or 0.0,
            **numbered_classes(model.classes),
        }

    def complete(self, config: Config, shapes: Mapping[str, Shape]) -> Config:
        return {**config, "num_channels": shapes["stem/kernel"][2]}

    def architecture(self, model: Any) -> str:
        return "ConvNextForImageClassification"

    def rows(self, model: Any) -> list[Row]:
        return [
            *layer("stem", "convnext.embeddings.patch_embeddings", CONVOLUTION),
            *layer("stem_norm", "convnext.embeddings.layernorm"),
            *rows_of_stages(
                model, "convnext.encoder.stages", ("downsampling_layer", "layers"), BLOCK
            ),
            *layer("norm", "convnext.layernorm"),
            *layer("head", "classifier", "c d -> d c"),
        ]


def rows_of_stages(
    model: Any, stages: str, names: tuple[str, str], block: tuple[Row, ...]
) -> list[Row]:
    """The rows of all stages.

    Args:
      model: ours.
      stages: the start of the names of their tensors.
      names: of the layers between two stages, and of the blocks of a stage.
      block: the rows of a block.
    """
    shrink, blocks = names
    rows = []
    for stage, count in enumerate(model.stages):
        theirs = f"{stages}.{stage}"
        if stage:
            rows += layer(f"shrink_{stage}_norm", f"{theirs}.{shrink}.0")
            rows += layer(f"shrink_{stage}", f"{theirs}.{shrink}.1", CONVOLUTION)
        for number in range(count):
            rows += [
                Row(
                    f"block_{stage}_{number}/{row.ours}",
                    f"{theirs}.{blocks}.{number}.{row.theirs}",
                    row.axes,
                )
                for row in block
            ]
    return rows
