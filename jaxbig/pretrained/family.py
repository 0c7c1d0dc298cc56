"""`Family`, the base class of the files in `families/`: what models are called elsewhere."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn

from jaxbig.constraints import settings
from jaxbig.errors import Refused
from jaxbig.models.transformer import GATED, default_mlp_width
from jaxbig.pretrained.weight_table import Row, Shape

Config = dict[str, Any]
"""The content of a `config.json`."""


FREE = (
    "dropout",
    "drop_path",
    "scan",
    "remat",
    "remat_group",
    "attention_kernel",
    "expert_dispatch",
    "dtype",
    "mlp_chunks",
    "load_balance_loss",
    "router_z_loss",
)
"""Fields of training and of how it is computed."""
UNUSED = {"experts": ("experts_per_token",), "window": ("window_pattern",), "classes": ("pooling",)}
"""Fields that change nothing where another is 0 or None."""


class Family(abc.ABC):
    """The models of one `model_type`: fields of a config and names of tensors, and ours.

    A family is one file in `families/` with a subclass. All that it has is read both ways, for
    folders that are read and for those that are written. A field of ours that it does not name has
    its default in every model of the family.
    """

    model_type: ClassVar[str]
    """Of a `config.json`."""
    module: ClassVar[type[nn.Module]]
    """Our class of the models."""
    same: ClassVar[Mapping[str, str]]
    """Our field, and the key of the config with the same value."""
    words: ClassVar[Mapping[str, tuple[str, Mapping[Any, Any]]]] = {}
    """Our field, the key of the config, and their words with ours; the first of equals is
    written."""
    ours: ClassVar[Mapping[str, Any]] = {}
    """Our fields that have this value, and not their default, in every model of the family."""
    free: ClassVar[Sequence[str]] = FREE
    """Our fields that a config says nothing of, and that may have any value."""
    theirs: ClassVar[Mapping[str, Any]] = {}
    """Keys of the config that have this value, or are not there: we have nothing else."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Values of keys that an older config does not have."""
    prefix: ClassVar[str] = ""
    """What begins the names of tensors, but where the body of a model was saved without a head."""
    older: ClassVar[Mapping[str, str]] = {}
    """Parts of names that older folders have, and what they are now."""
    ignored: ClassVar[Sequence[str]] = ()
    """Regular expressions for tensors that are no weights, such as masks."""
    left_out: ClassVar[Sequence[str]] = ()
    """Regular expressions for tensors of heads that our model may not have."""
    heads: ClassVar[Sequence[str]] = ()
    """Regular expressions for our leaves of heads, which begin fresh where a folder lacks them."""
    of_heads: ClassVar[Sequence[str]] = ("classes", "pooling")
    """Our fields that are those of a head alone."""
    image_processor: ClassVar[str | None] = None
    """The class of transformers that prepares images, empty for timm, which needs none; None: the
    model has no images."""
    tied: ClassVar[Mapping[str, str]] = {}
    """Tensors that a folder may have again under another name: that name, and the name in
    `rows`."""

    @abc.abstractmethod
    def rows(self, model: Any) -> Sequence[Row]:
        """The table of the weights of a model; a row counts where the model has its leaf."""

    @abc.abstractmethod
    def architecture(self, model: Any) -> str:
        """The class of transformers that loads the model, as `architectures` in a config names
        it."""

    def complete(self, config: Config, shapes: Mapping[str, Shape]) -> Config:
        """A config with the keys that no field of a model has, such as the channels of an image.

        Args:
          config: what `config` gives.
          shapes: of the model's leaves, by our name.
        """
        return config

    def matches(self, config: Config) -> bool:
        """Whether a `config.json` is one of this family."""
        return config.get("model_type") == self.model_type

    def fields(self, config: Config) -> dict[str, Any]:
        """Our fields from a config.

        Raises:
          Refused: a key is missing, or asks for what we do not have.
        """
        config = {**self.defaults, **config}
        for key, value in self.theirs.items():
            if config.get(key, value) != value:
                raise Refused(
                    f"config.json has {key} {config[key]!r}: of {self.model_type} jaxbig has "
                    f"{value!r} alone."
                )
        return {
            **defaults_of(self.module, self.free),
            **self.ours,
            **{name: get(config, key) for name, key in self.same.items()},
            **{name: word(config, key, table) for name, (key, table) in self.words.items()},
        }

    def config(self, model: Any) -> Config:
        """The keys of a config from the fields of a model that `differences` finds none of.

        Raises:
          Refused: the family has no such model.
        """
        values = field_values(model)
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture(model)],
            **self.theirs,
            **{key: values[name] for name, key in self.same.items()},
            **{key: back(name, values[name], table) for name, (key, table) in self.words.items()},
        }

    def differences(self, config: Config, model: nn.Module, *, heads: bool = True) -> list[str]:
        """How the model of a config differs from one of ours, a line a field.

        Args:
          config: of the family.
          model: ours.
          heads: whether their heads are compared too.
        """
        if not isinstance(model, self.module):
            return [f"model: {self.module.__name__} there, {type(model).__name__} here"]
        fields = self.fields(config)
        there = resolved(fields)
        here = field_values(model)
        return [
            f"{name}: {there[name]!r} there, {here[name]!r} here"
            for name, value in fields.items()
            if name in there.keys() & here.keys()  # else it is unused
            and there[name] != here[name]
            and (heads or name not in self.of_heads)
            and (value is not None or getattr(model, name) is not None)  # else it follows others
        ]

    def config_of(self, model: nn.Module) -> Config:
        """The config of a model.

        Raises:
          Refused: the family has no such model; the message names every field.
        """
        if not isinstance(model, self.module):
            raise Refused(f"it is {type(model).__name__}")
        config = self.config(model)
        if lines := self.differences(config, model):
            raise Refused(", ".join(lines))
        return config


def in_blocks(ours: str, theirs: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of one block for every block.

    Args:
      ours: path of our `Stack`, as "blocks".
      theirs: the start of a block's tensors, with `*` for its number, as "h.*".
      rows: with paths and names within a block.
    """
    return [
        dataclasses.replace(row, ours=f"{ours}/block_*/{row.ours}", theirs=f"{theirs}.{row.theirs}")
        for row in rows
    ]


def count_classes(config: Mapping[str, Any]) -> int:
    """The number of classes of a config, which names them; 2 where it does not."""
    return len(config.get("id2label", "01"))


def numbered_classes(classes: int) -> Config:
    """The keys of a config that name classes by their numbers, as transformers does."""
    return class_names([f"LABEL_{number}" for number in range(classes)])


def class_names(names: Sequence[str]) -> Config:
    """The keys of a config that name its classes."""
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def get(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key of a config; raises `Refused` if it is not there."""
    if key not in config:
        raise Refused(f"config.json has no {key}.")
    return config[key]


def word(config: Mapping[str, Any], key: str, table: Mapping[Any, Any]) -> Any:
    """Our word for the value of a key of a config; raises `Refused` if we have none."""
    value = get(config, key)
    if value not in table:
        known = ", ".join(map(repr, table))
        raise Refused(f"config.json has {key} {value!r}: of this family jaxbig has {known}.")
    return table[value]


def back(name: str, value: Any, table: Mapping[Any, Any]) -> Any:
    """The first word of theirs for the value of our field; raises `Refused` if there is none."""
    found = [theirs for theirs, ours in table.items() if ours == value]
    if not found:
        raise Refused(f"it has {name} {value!r}")
    return found[0]


def defaults_of(module: type[nn.Module], without: Sequence[str]) -> dict[str, Any]:
    """The fields of our class that have a default, with it, but for some of them."""
    kind: Any = module
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.name in settings(module)
        and field.name not in without
        and field.default is not dataclasses.MISSING
    }


def field_values(model: nn.Module) -> dict[str, Any]:
    """The fields of a model, `resolved`."""
    return resolved({name: getattr(model, name) for name in settings(model)})


def resolved(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a model with what it takes for None; without those that change nothing."""
    values = dict(fields)
    if values.get("head_width", 0) is None:
        values["head_width"] = values["width"] // values["heads"]
    if values.get("attention_scale", 0) is None:
        values["attention_scale"] = values["head_width"] ** -0.5
    if values.get("mlp_width", 0) is None:
        gated = values["activation"] in GATED
        values["mlp_width"] = default_mlp_width(values["width"], gated)
    for name, same in (("kv_heads", "heads"), ("qkv_bias", "bias"), ("mlp_bias", "bias")):
        if values.get(name, 0) is None:
            values[name] = values[same]
    for name, without in UNUSED.items():
        if not values.get(name, True):
            values = {other: value for other, value in values.items() if other not in without}
    return values
