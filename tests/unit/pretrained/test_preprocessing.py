"""How images are prepared for a pretrained model, compared with the data and written for others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxbig as jb
from jaxbig.data.transforms.augment import CentralCrop, Normalize
from jaxbig.pretrained.preprocessing import preprocessing_differences, write_preprocessing

TIMM = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224]}}
PROCESSOR = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"height": 224, "width": 224},
}


def images(**fields: Any) -> Any:
    records = jb.data.Synthetic(images=("image",), labels=(("label", 5),))
    fields = {"size": 224, "center": (CentralCrop(), Normalize())} | fields
    return jb.data.Images(records=records, batch=8, classes=5, canvas=256, **fields)


def test_equal_preprocessing_has_no_difference(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    assert preprocessing_differences(tmp_path, {}, images()) == []


def test_every_difference_of_preprocessing_is_named(tmp_path: Path) -> None:
    assert preprocessing_differences(tmp_path, TIMM, images(size=192)) == [
        "size 224 there, 192 here",
        "mean 0.5 0.5 0.5 there, 0.485 0.456 0.406 here",
        "std 0.5 0.5 0.5 there, 0.229 0.224 0.225 here",
    ]


def test_numbers_that_are_not_scaled_to_1_are_named(tmp_path: Path) -> None:
    text = json.dumps({"do_normalize": False, "rescale_factor": 1 / 127.5})
    (tmp_path / "preprocessor_config.json").write_text(text)
    found = preprocessing_differences(tmp_path, {}, images(center=(CentralCrop(),)))
    assert found == ["rescale_factor 0.007843 there, 0.003922 here"]


def test_data_without_images_has_no_preprocessing(tmp_path: Path) -> None:
    data = jb.load("pytext_transformer").data
    assert preprocessing_differences(tmp_path, TIMM, data) == []
    assert write_preprocessing(tmp_path, TIMM, "", data=data) == TIMM


@pytest.mark.parametrize("processor", ["ViTImageProcessor", "ConvNextImageProcessor", ""])
def test_written_preprocessing_is_that_of_the_data(processor: str, tmp_path: Path) -> None:
    data = images(center=(CentralCrop(share=0.75), Normalize(mean=(0.25,), std=(0.75,))))
    config = write_preprocessing(tmp_path, {"pretrained_cfg": {}}, processor, data=data)
    assert preprocessing_differences(tmp_path, config, data) == []
    other = images(size=192, center=(Normalize(),))
    assert len(preprocessing_differences(tmp_path, config, other)) == 3
    found = config["pretrained_cfg"]
    if processor:
        found = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert found.get("crop_pct", 0.75) == 0.75
    np.testing.assert_allclose(found.get("image_mean", found.get("mean")), [0.25] * 3)
