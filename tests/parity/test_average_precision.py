"""Average precision against pycocotools."""

import contextlib
import io

import numpy as np
import pytest

from jaxbig.objectives.average_precision import AveragePrecision

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")

IMAGES = 40
OBJECTS = 5
QUERIES = 12
CLASSES = 4


def corner(box: np.ndarray) -> list[float]:
    """Center and size -> left, top, width and height, as COCO has them."""
    box = box.astype(np.float64)
    return [*(box[:2] - box[2:] / 2), *box[2:]]


@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_pycocotools_with_crowds(seed: int) -> None:
    draw = np.random.default_rng(seed)
    middle = draw.uniform(0.2, 0.8, (IMAGES, OBJECTS, 2))
    boxes = np.concatenate([middle, draw.uniform(0.05, 0.3, middle.shape)], axis=2)
    boxes = boxes.astype(np.float32)
    there = np.arange(OBJECTS) < draw.integers(0, OBJECTS + 1, (IMAGES, 1))
    crowd = there & (draw.uniform(size=there.shape) < 0.2)
    targets = draw.integers(0, CLASSES, there.shape)
    which = draw.integers(0, OBJECTS, (IMAGES, QUERIES))
    near = np.take_along_axis(boxes, which[..., None], axis=1)
    found = (near + draw.normal(0, 0.02, near.shape)).clip(0.01, 1).astype(np.float32)
    logits = draw.normal(0, 1, (IMAGES, QUERIES, CLASSES)).astype(np.float32)
    logits += 3 * np.eye(CLASSES)[np.take_along_axis(targets, which, axis=1)].astype(np.float32)

    metric = AveragePrecision(most=20)
    batch = {
        "targets": targets,
        "boxes": boxes,
        "present": (there & ~crowd).astype(np.float32),
        "crowd": crowd.astype(np.float32),
        "mask": np.ones(IMAGES, np.float32),
    }
    kept = metric.keep({"logits": logits[:, None], "boxes": found[:, None]}, batch)
    ours = metric.result(kept)

    truth = coco.COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i + 1} for i in range(IMAGES)],
        "categories": [{"id": k} for k in range(CLASSES)],
        "annotations": [
            {
                "id": 1 + OBJECTS * i + n,
                "image_id": i + 1,
                "category_id": int(targets[i, n]),
                "bbox": corner(boxes[i, n]),
                "area": float(boxes[i, n, 2] * boxes[i, n, 3]),
                "iscrowd": int(crowd[i, n]),
            }
            for i, n in np.argwhere(there)
        ],
    }
    detections = [
        {
            "image_id": i + 1,
            "category_id": int(kept["classes"][i, p]),
            "bbox": corner(kept["found"][i, p]),
            "score": float(kept["scores"][i, p]),
        }
        for i, p in np.ndindex(kept["classes"].shape)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = cocoeval.COCOeval(truth, truth.loadRes(detections), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    expected = dict(zip(("ap", "ap50", "ap75"), judge.stats[:3], strict=True))
    assert ours == pytest.approx(expected, abs=1e-6)
    assert 0.05 < ours["ap"] < 0.95
