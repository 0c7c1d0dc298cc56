"""`TimmFamily`, the base class of families of timm, whose config names an architecture."""

import abc
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxbig.errors import Refused
from jaxbig.pretrained.family import Config, Family, defaults_of
from jaxbig.pretrained.weight_table import Shape

ANY = ("num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate")
"""Arguments of every model of timm that no field of ours needs."""


class TimmFamily(Family):
    """The models of timm of some architectures, and the arguments that change them."""

    architectures: ClassVar[str]
    """A regular expression for their names."""
    plain: ClassVar[Mapping[str, Any]]
    """Arguments that we have, with their values where nothing is said."""
    pool: ClassVar[str] = "avg"
    """Their pooling where nothing is said."""
    classifier: ClassVar[str] = "head"
    """The name of their classifier."""
    first: ClassVar[str]
    """The name of their first convolution."""
    same: ClassVar[Mapping[str, str]] = {}
    ignored = (r".*\.num_batches_tracked",)
    heads = ("head/.*",)
    image_processor = ""

    @abc.abstractmethod
    def of_architecture(self, match: re.Match[str]) -> dict[str, Any]:
        """The arguments that an architecture has besides `plain`, from the match of its name."""

    @abc.abstractmethod
    def of_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Our fields, but for the classes, from all arguments of a model."""

    @abc.abstractmethod
    def arguments(self, model: Any) -> tuple[str, dict[str, Any]]:
        """The architecture as which a model is written, and its arguments.

        Raises:
          Refused: timm has no such model; the message says why.
        """

    def matches(self, config: Config) -> bool:
        return re.fullmatch(self.architectures, str(config.get("architecture"))) is not None

    def fields(self, config: Config) -> dict[str, Any]:
        match = re.fullmatch(self.architectures, config["architecture"])
        assert match is not None, config["architecture"]
        # timm takes None for an argument that is not given
        arguments = config.get("model_args") or {}
        given = {name: value for name, value in arguments.items() if value is not None}
        given.setdefault("global_pool", config.get("global_pool", self.pool))
        known = {**self.plain, **self.of_architecture(match)}
        for name, value in given.items():
            if value and name not in known and name not in ANY:
                raise Refused(
                    f"config.json has model_args {name} {value!r}: of {config['architecture']} "
                    f"jaxbig knows {', '.join(known)}."
                )
        classes = given.get("num_classes", config.get("num_classes", 1000))
        return {
            **defaults_of(self.module, self.free),
            **self.of_arguments(known | given),
            "classes": classes,
        }

    def config(self, model: Any) -> Config:
        architecture, arguments = self.arguments(model)
        return {
            "architecture": architecture,
            "num_classes": model.classes,
            "global_pool": arguments.get("global_pool", self.pool),
            "model_args": {"num_classes": model.classes, **arguments},
        }

    def complete(self, config: Config, shapes: Mapping[str, Shape]) -> Config:
        sizes = self.sizes(config["model_args"], shapes)
        side = sizes.get("img_size", 224)
        preprocessing = {
            "num_classes": config["num_classes"],
            "input_size": [sizes["in_chans"], side, side],
            "first_conv": self.first,
            "classifier": self.classifier,
            "custom_load": False,
        }
        return {
            **config,
            "num_features": shapes["head/kernel"][0],
            "model_args": {**config["model_args"], **sizes},
            "pretrained_cfg": {**config.get("pretrained_cfg", {}), **preprocessing},
        }

    @abc.abstractmethod
    def sizes(self, arguments: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, int]:
        """The arguments `in_chans` and, where the model has one, `img_size`."""

    def architecture(self, model: Any) -> str:
        return self.arguments(model)[0]
