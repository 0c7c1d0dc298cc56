"""`Family`, the base class of the files in `families/`: what models are called elsewhere."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn

from jaxbig.errors import Refused
from jaxbig.models.transformer import GATED, default_mlp_width
from jaxbig.pretrained.weight_table import Row

Config = dict[str, Any]
"""The content of a `config.json`."""


class Family(abc.ABC):
    """The models of one `model_type`: fields of a config and names of tensors, and ours.

    A family is one file in `families/` with a subclass. All that it has is read both ways, for
    folders that are read and for those that are written.
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
    """Our fields that have this value in every model of the family."""
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
            **self.ours,
            **{name: get(config, key) for name, key in self.same.items()},
            **{name: word(config, key, table) for name, (key, table) in self.words.items()},
        }

    def config(self, model: Any) -> Config:
        """The keys of a config from the fields of a model.

        Raises:
          Refused: the family has no such model.
        """
        values = field_values(model)
        wrong = [
            f"{name} {values[name]!r}, not {value!r}"
            for name, value in self.ours.items()
            if values[name] != value
        ]
        if wrong:
            raise Refused(f"it has {', '.join(wrong)}")
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture(model)],
            **self.theirs,
            **{key: values[name] for name, key in self.same.items()},
            **{key: back(name, values[name], table) for name, (key, table) in self.words.items()},
        }


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


def field_values(model: nn.Module) -> dict[str, Any]:
    """The fields of a model, with what it takes for None where that is a number."""
    values = {name: getattr(model, name) for name in model.__dataclass_fields__}
    if "kv_heads" in values and values["kv_heads"] is None:
        values["kv_heads"] = values["heads"]
    if "mlp_width" in values and values["mlp_width"] is None:
        values["mlp_width"] = default_mlp_width(values["width"], values["activation"] in GATED)
    return values
