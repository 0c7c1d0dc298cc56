"""What was done with images before a pretrained model saw them, and what a data set does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.pretrained.family import Config
from jaxbig.pretrained.weight_files import read_object

FILE = "preprocessor_config.json"
BILINEAR = 2
"""The number that Pillow and transformers have for it."""
PIXEL = 1 / 255
"""The factor that makes 0 to 255 into 0 to 1."""


def preprocessing_differences(folder: Path, config: Mapping[str, Any], data: Any) -> list[str]:
    """How a data set prepares images otherwise than a folder's model expects, a line each.

    Args:
      folder: of pretrained weights.
      config: its `config.json`.
      data: any data set; only those of images are compared.
    """
    if not is_of_images(data):
        return []
    here = of_data(data)
    there = of_folder(folder, config)
    return [
        f"{name} {in_words(value)} there, {in_words(here[name])} here"
        for name, value in there.items()
        if not np.allclose(value, here[name], rtol=1e-4)
    ]


def of_folder(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """`size`, `mean` and `std` of a folder, as far as it has them.

    Those of transformers are in a file of their own, those of timm in `config.json`.
    """
    if cfg := config.get("pretrained_cfg"):
        size = cfg.get("input_size") or [None]
        return known({"size": size[-1], "mean": cfg.get("mean"), "std": cfg.get("std")})
    if not (folder / FILE).is_file():
        return {}
    cfg = read_object(folder / FILE)
    size = cfg.get("crop_size" if cfg.get("do_center_crop") else "size")
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    found = {"size": size, "mean": cfg.get("image_mean"), "std": cfg.get("image_std")}
    if not cfg.get("do_normalize", True):
        found |= {"mean": 0.0, "std": 1.0}
    if cfg.get("do_rescale", True):
        found["rescale_factor"] = cfg.get("rescale_factor", PIXEL)
    return known(found)


def known(found: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in found.items() if value is not None}


def of_data(data: Any) -> dict[str, Any]:
    """The same of a data set, as it prepares images for an evaluation."""
    normalize = [each for each in data.center if hasattr(each, "mean") and hasattr(each, "std")]
    return {
        "size": data.size,
        "mean": normalize[-1].mean if normalize else 0.0,
        "std": normalize[-1].std if normalize else 1.0,
        "rescale_factor": PIXEL,
    }


def in_words(value: Any) -> str:
    """A number, or one for each channel."""
    return " ".join(f"{number:.4g}" for number in np.atleast_1d(value))


def write_preprocessing(folder: Path, config: Config, processor: str, *, data: Any) -> Config:
    """Writes how a data set prepares images, so that who loads a folder does the same.

    Args:
      folder: that is being written.
      config: of its `config.json`.
      processor: the class of transformers that prepares images; empty: the config says it, as timm
        has it.
      data: any data set; only that of images is written.

    Returns:
      The config, with what belongs there.
    """
    if not is_of_images(data):
        return config
    here = of_data(data)
    size = here["size"]
    mean = np.broadcast_to(here["mean"], data.channels).tolist()
    std = np.broadcast_to(here["std"], data.channels).tolist()
    share = next((each.share for each in data.center if hasattr(each, "share")), 1.0)
    if not processor:
        cfg = {**config["pretrained_cfg"], "mean": mean, "std": std, "crop_pct": share}
        cfg |= {"input_size": [data.channels, size, size], "interpolation": "bilinear"}
        return {**config, "pretrained_cfg": cfg}
    file = folder / FILE
    cfg: Config = {"image_processor_type": processor}
    if file.is_file():
        cfg = read_object(file)
    for name in ("crop_size", "do_center_crop", "feature_extractor_type"):
        cfg.pop(name, None)
    sides = {"height": size, "width": size}
    cfg |= {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": mean,
        "image_std": std,
        "rescale_factor": PIXEL,
        "resample": BILINEAR,
        "size": {"shortest_edge": size} if processor.startswith("ConvNext") else sides,
    }
    if processor.startswith("ConvNext"):
        cfg["crop_pct"] = share
    file.write_text(json.dumps(cfg, indent=2) + "\n")
    return config


def is_of_images(data: Any) -> bool:
    """Whether a data set has images that are prepared for an evaluation."""
    return all(hasattr(data, name) for name in ("size", "center", "channels"))
