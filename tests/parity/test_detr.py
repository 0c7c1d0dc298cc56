"""DETR and its losses against PyTorch, torchvision and SciPy."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss
from unit.objectives.test_detection import case, sums

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.models.detr import DETR, RARE, SIDE
from jaxbig.models.resnet import ResNet
from jaxbig.objectives.detection import edges, focal_loss, giou

BACKBONE = ResNet(
    classes=1, stages=(1, 1), bottleneck=False, norm="group", groups=4, stem="small", width=4
)
MODEL = DETR(classes=3, backbone=BACKBONE, depth=2, width=8, heads=2, grid=3)


def sines(points: torch.Tensor) -> torch.Tensor:
    """Vaswani et al. (2017), section 3.5, half of the width for x and half for y."""
    rates = 10_000.0 ** (-torch.arange(0, 4, 2) / 4)
    angles = [SIDE * points[:, axis, None] * rates for axis in (0, 1)]
    return torch.cat([wave(each) for each in angles for wave in (torch.sin, torch.cos)], 1)


def middles(columns: int, rows: int) -> torch.Tensor:
    """The middles of the places of a grid, row by row, x first."""
    return torch.tensor(
        [((x + 0.5) / columns, (y + 0.5) / rows) for y in range(rows) for x in range(columns)]
    )


def reference(params: dict, features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """From a feature map [B, 6, 8, C] on: logits [B, R, Q, K], boxes [B, R, Q, 4]."""
    p = {path: torch.tensor(np.asarray(leaf)) for path, leaf in flatten_with_paths(params).items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        kernel = p[f"{name}/kernel"].reshape(x.shape[-1], -1)
        return x @ kernel + p[f"{name}/bias"].reshape(-1)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (8,), p[f"{name}/scale"], p[f"{name}/bias"], 1e-6)

    def attend(name: str, x: torch.Tensor, memory: torch.Tensor, bias: Any = None) -> torch.Tensor:
        both = linear(f"{name}/key_value", memory).chunk(2, -1)
        heads = [each.unflatten(-1, (2, 4)).transpose(1, 2) for each in both]  # [B, H, S, K]
        query = linear(f"{name}/query", x).unflatten(-1, (2, 4)).transpose(1, 2)
        y = F.scaled_dot_product_attention(query, *heads, attn_mask=bias)
        return linear(f"{name}/out", y.transpose(1, 2).flatten(2))

    def mlp(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(f"{name}/down", F.relu(linear(f"{name}/up", norm(f"{name}/mlp_norm", x))))

    places = middles(8, 6)
    y = linear("input", torch.tensor(features).flatten(1, 2)) + sines(places)
    for name in ("encoder/block_0", "encoder/block_1"):
        z = norm(f"{name}/attention_norm", y)
        y = y + attend(f"{name}/attention", z, z)
        y = y + mlp(name, y)
    memory = norm("encoder/norm", y) + sines(places)

    points = middles(3, 3)
    under = [8 * y + x for y in (1, 3, 5) for x in (1, 4, 6)]
    q = memory[:, under] + p["queries/embedding"]
    square = torch.cdist(points, places) ** 2
    near = (
        -((torch.exp(p["nearness"]) * torch.tensor([3, 12]))[:, None, None] ** 2) * square / 2
    )  # [H, Q, S]
    answers = []
    for name in ("decoder_0", "decoder_1"):
        z = norm(f"{name}/attention_norm", q)
        q = q + attend(f"{name}/attention", z, z)
        q = q + attend(f"{name}/cross", norm(f"{name}/cross_norm", q), memory, near)
        q = q + mlp(name, q)
        answers.append(norm("norm", q))
    q = torch.stack(answers, 1)
    offsets = linear("box_head", F.relu(linear("box_1", F.relu(linear("box_0", q)))))
    anchors = torch.cat([points, torch.full_like(points, 0.5)], 1)
    return linear("head", q) + RARE, torch.sigmoid(offsets + torch.logit(anchors))


@pytest.fixture(scope="module")
def answers() -> Any:
    """Parameters, what the model gives from them, its last answer alone, and the feature map."""
    x = jax.random.normal(jax.random.key(1), (2, 12, 16, 3))

    @jax.jit
    def run() -> Any:
        params = nn.meta.unbox(MODEL.init(jax.random.key(0), x))["params"]
        features = BACKBONE.apply({"params": params["backbone"]}, x, head=False)
        last = MODEL.clone(auxiliary=False).apply({"params": params}, x)
        return params, MODEL.apply({"params": params}, x), last, features

    return run()


def test_it_is_pytorchs_from_the_feature_map_on(answers: Any) -> None:
    params, found, _, features = answers
    assert found["boxes"].shape == (2, 2, 9, 4)
    logits, boxes = reference(params, np.asarray(features))
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(found["boxes"], boxes, atol=1e-5)


def test_without_auxiliary_answers_it_gives_the_last(answers: Any) -> None:
    _, found, last, _ = answers
    for name in found:
        np.testing.assert_allclose(last[name], found[name][:, -1:], atol=1e-6)


def test_focal_loss_and_giou_are_those_of_torchvision() -> None:
    outputs, batch = case(1)
    logits = np.asarray(outputs["logits"])
    wanted = (logits > 0.3).astype(np.float32)
    theirs = sigmoid_focal_loss(torch.tensor(logits), torch.tensor(wanted))
    np.testing.assert_allclose(focal_loss(logits, wanted), theirs, rtol=1e-5, atol=1e-7)
    one = np.asarray(outputs["boxes"][0, 0])
    other = np.asarray(batch["boxes"][0])
    theirs = generalized_box_iou(torch.tensor(edges(one)), torch.tensor(edges(other)))
    np.testing.assert_allclose(giou(one[:, None], other[None]), theirs, rtol=1e-4, atol=1e-5)


def test_loss_is_that_of_scipy_and_torchvision_by_hand() -> None:
    outputs, batch = case(5)
    batch["mask"] = batch["mask"].at[2].set(0)
    found = sums(outputs, batch)
    total = 0.0
    count = 0
    for image in range(2):
        there = np.asarray(batch["present"][image]) > 0
        count += max(there.sum(), 1)
        kinds = np.asarray(batch["targets"][image])[there]
        true = torch.tensor(np.asarray(batch["boxes"][image]))[there]
        for layer in range(2):
            logits = torch.tensor(np.asarray(outputs["logits"][image, layer]))
            boxes = torch.tensor(np.asarray(outputs["boxes"][image, layer]))
            yes = sigmoid_focal_loss(logits, torch.ones_like(logits))
            no = sigmoid_focal_loss(logits, torch.zeros_like(logits))
            apart = torch.cdist(boxes, true, p=1)
            overlap = generalized_box_iou(
                torch.tensor(edges(boxes.numpy())), torch.tensor(edges(true.numpy()))
            )
            rows, columns = linear_sum_assignment(
                2 * (yes - no)[:, kinds] + 5 * apart - 2 * overlap
            )
            wanted = torch.zeros_like(logits)
            wanted[rows, kinds[columns]] = 1
            total += 2 * sigmoid_focal_loss(logits, wanted).sum().item()
            total += (5 * apart + 2 * (1 - overlap))[rows, columns].sum().item()
    assert float(found["loss"].weight) == count
    assert float(found["loss"].total) == pytest.approx(total, rel=1e-5)
