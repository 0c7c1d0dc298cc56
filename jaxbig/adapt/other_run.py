"""The weights of another run as its evaluation uses them: averages, and adapters merged."""

import re
from typing import Any

import jax

from jaxbig.adapt import lora
from jaxbig.adapt.weights import AVERAGE, FROZEN, MASTERS
from jaxbig.arrays.dtypes import upcast
from jaxbig.errors import Refused

PARAMETERS = "params/"
STATISTICS = "variables/batch_stats/"
FROZEN_PARAMETERS = f"variables/{FROZEN}/"
AVERAGES = f"variables/{AVERAGE}/"


def place_of(name: str, shapes: dict[str, str]) -> str | None:
    """The path of a parameter's best values in a run's state; None if it has no such parameter.

    Args:
      name: of the parameter.
      shapes: of the state's leaves, by path.
    """
    places = [f"{field}{name}" for field in (AVERAGES, MASTERS, PARAMETERS, FROZEN_PARAMETERS)]
    return next((place for place in places if place in shapes), None)


def adapters_of(name: str, shapes: dict[str, str]) -> list[str]:
    """The paths of a parameter's adapter in a run's state, if it has one."""
    *above, last = name.split("/")
    found = [place_of("/".join([*above, each, last]), shapes) for each in (lora.A, lora.B)]
    return [path for path in found if path is not None]


def is_adapter(name: str) -> bool:
    """Whether a path is that of an adapter's part."""
    return name.split("/")[-2:-1] in ([lora.A], [lora.B])


def plain_leaves(leaves: dict[str, Any], scale: float) -> dict[str, Any]:
    """A run's leaves as a plain model's state has them: masters and averages in place of
    parameters, adapters merged.

    Args:
      leaves: of the run's state, by path.
      scale: the factor of its adapters; 0: its `run.json`, which has it, cannot be read.

    Raises:
      Refused: there are adapters and no factor.
    """
    pattern = f"^({MASTERS}|{AVERAGES}|{FROZEN_PARAMETERS})"
    plain = {re.sub(pattern, PARAMETERS, path): leaf for path, leaf in leaves.items()}
    for name, value in list(plain.items()):
        *above, last = name.split("/")
        a = plain.get("/".join([*above, lora.A, last]))
        b = plain.get("/".join([*above, lora.B, last]))
        if a is not None and b is not None:
            if not scale:
                raise Refused(
                    "the other run has adapters, and its run.json, which has their factor, cannot "
                    "be read: bring back a copy of it."
                )
            merged = upcast(value) + scale * lora.product(upcast(a), upcast(b), value.ndim)
            plain[name] = jax.device_put(merged.astype(value.dtype), value.sharding)
    return {name: leaf for name, leaf in plain.items() if not is_adapter(name)}
