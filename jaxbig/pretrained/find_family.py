"""Finds the family of a config, or of a model: each file in `families/` is one."""

import functools
import importlib
import pkgutil

import flax.linen as nn

from jaxbig.errors import Refused
from jaxbig.pretrained import families
from jaxbig.pretrained.family import Config, Family


@functools.cache
def all_families() -> tuple[Family, ...]:
    """One of each family, by the names of their files."""
    found = []
    for info in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        module = importlib.import_module(info.name)
        for each in vars(module).values():
            own = isinstance(each, type) and each.__module__ == module.__name__
            if own and issubclass(each, Family):
                found.append(each())
    return tuple(found)


def find_family(config: Config) -> Family:
    """The family of a config; raises `Refused` if jaxbig has none."""
    for family in all_families():
        if family.matches(config):
            return family
    known = ", ".join(sorted(family.model_type for family in all_families()))
    kind = config.get("model_type", config.get("architecture"))
    said = f"is of model_type {kind!r}" if kind else "has no model_type"
    raise Refused(f"config.json {said}: jaxbig reads {known}.")


def family_of_model(model: nn.Module, name: str = "") -> Family:
    """The family as which a model is written.

    Args:
      model: any.
      name: the `model_type` that is asked for; empty: the first that has such a model.

    Raises:
      Refused: there is none; the message says for each why not.
    """
    known = {family.model_type: family for family in all_families()}
    if name and name not in known:
        raise Refused(f"--family {name}: it must be one of {', '.join(sorted(known))}.")
    reasons = []
    same = [family for family in known.values() if isinstance(model, family.module)]
    for family in [known[name]] if name else same:
        try:
            family.config_of(model)
            return family
        except Refused as error:
            reasons.append(f"{family.model_type}: {error}")
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise Refused(
        f"the model, a {type(model).__name__}, is of no family that Hugging Face has{why}: "
        f"--format safetensors writes any model's parameters."
    )
