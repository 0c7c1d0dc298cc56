"""Residual nets (He et al., 2016), as transformers has them."""

from collections.abc import Mapping
from typing import Any

from jaxbig.errors import Refused
from jaxbig.models.resnet import ResNet
from jaxbig.pretrained.family import FREE, Config, Family, count_classes, get, numbered_classes
from jaxbig.pretrained.weight_table import BATCH_STATS, Row, Shape

CONVOLUTION = "o i y x -> y x i o"


def conv_norm(ours: str, convolution: str, norm: str) -> list[Row]:
    """The rows of a convolution without bias and its batch normalization."""
    return [
        Row(f"{ours}/conv/kernel", f"{convolution}.weight", CONVOLUTION),
        Row(f"{ours}/norm/scale", f"{norm}.weight"),
        Row(f"{ours}/norm/bias", f"{norm}.bias"),
        Row(f"{BATCH_STATS}{ours}/norm/mean", f"{norm}.running_mean"),
        Row(f"{BATCH_STATS}{ours}/norm/var", f"{norm}.running_var"),
    ]


class ResidualNet(Family):
    """ResNet with a classifier, of basic blocks or bottlenecks; channels double at each stage."""

    model_type = "resnet"
    module = ResNet
    same = {"width": "embedding_size"}
    words = {
        "bottleneck": ("layer_type", {"bottleneck": True, "basic": False}),
        "stride_first": ("downsample_in_bottleneck", {False: False, True: True}),
    }
    free = (*FREE, "groups")
    theirs = {"downsample_in_first_stage": False, "hidden_act": "relu"}
    defaults = {
        "downsample_in_bottleneck": False,
        "embedding_size": 64,
        "layer_type": "bottleneck",
        "depths": (3, 4, 6, 3),
        "hidden_sizes": (256, 512, 1024, 2048),
    }
    prefix = "resnet."
    ignored = (r".*\.num_batches_tracked",)
    left_out = (r"classifier\..*",)
    heads = ("head/.*",)
    image_processor = "ConvNextImageProcessor"

    def fields(self, config: Config) -> dict[str, Any]:
        fields = super().fields(config)
        config = {**self.defaults, **config}
        fields["stages"] = tuple(get(config, "depths"))
        fields["classes"] = count_classes(config)
        sizes = list(get(config, "hidden_sizes"))
        if sizes != channels(fields):
            raise Refused(
                f"config.json has hidden_sizes {sizes}: of these fields jaxbig has "
                f"{channels(fields)} alone."
            )
        return fields

    def config(self, model: Any) -> Config:
        fields = {name: getattr(model, name) for name in ("width", "stages", "bottleneck")}
        return {
            **super().config(model),
            "depths": list(model.stages),
            "hidden_sizes": channels(fields),
            **numbered_classes(model.classes),
        }

    def complete(self, config: Config, shapes: Mapping[str, Shape]) -> Config:
        return {**config, "num_channels": shapes["stem/conv/kernel"][2]}

    def architecture(self, model: Any) -> str:
        return "ResNetForImageClassification"

    def rows(self, model: Any) -> list[Row]:
        stem = "resnet.embedder.embedder"
        rows = conv_norm("stem", f"{stem}.convolution", f"{stem}.normalization")
        for stage, blocks in enumerate(model.stages):
            for block in range(blocks):
                ours = f"block_{stage}_{block}"
                theirs = f"resnet.encoder.stages.{stage}.layers.{block}"
                names = {f"conv_{number + 1}": f"layer.{number}" for number in range(3)}
                for own, name in {**names, "shortcut": "shortcut"}.items():
                    layer = f"{theirs}.{name}"
                    rows += conv_norm(
                        f"{ours}/{own}", f"{layer}.convolution", f"{layer}.normalization"
                    )
        return [
            *rows,
            Row("head/kernel", "classifier.1.weight", "c d -> d c"),
            Row("head/bias", "classifier.1.bias"),
        ]


def channels(fields: Mapping[str, Any]) -> list[int]:
    """The channels of each stage's outputs, by the fields of a model."""
    out = 4 if fields["bottleneck"] else 1
    return [fields["width"] * 2**stage * out for stage in range(len(fields["stages"]))]
