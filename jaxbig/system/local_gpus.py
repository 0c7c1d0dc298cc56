"""The numbers of this machine's GPUs, found without starting JAX."""

import os
import re
from pathlib import Path


def gpus() -> list[str]:
    """The numbers of the GPUs that JAX may use here; none if JAX_PLATFORMS excludes them."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("", "cuda", "gpu", "rocm"):
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each for each in visible.split(",") if each not in ("", "-1")]
    found = [
        match[1]
        for file in Path("/dev").glob("nvidia*")
        if (match := re.fullmatch(r"nvidia(\d+)", file.name))
    ]
    return sorted(found, key=int)
