"""What a run's answers depend on."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.experiments import small
from support.programs import share_programs

import jaxbig as jb
from jaxbig.cli.main import run as command_line
from jaxbig.errors import Failed, Refused
from jaxbig.models.layers.attention import Attention
from jaxbig.objectives.base import cross_entropy
from jaxbig.tools.explain import grad_cam, integrated, make_explain, occlusion
from jaxbig.train import run as api_run
from jaxbig.train import trainer
from jaxbig.train.run import open_run_split

Tiny = Callable[..., jb.Experiment]
FEW = {"steps": 2, "evaluate_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    make = share_programs()
    with pytest.MonkeyPatch.context() as patch:
        for module in (trainer, api_run):
            patch.setattr(module, "make_program", make)
        yield


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    return jb.fit(tiny(**FEW), tmp_path_factory.mktemp("digits"))


def at_start(experiment: jb.Experiment, folder: Path, devices: Any = None) -> jb.Run:
    """A run before its first step."""
    program = api_run.make_program(experiment, devices)
    with program.activate():
        state = program.init()
    return api_run.make_run(folder, program, state, 0)


def test_maps_of_a_model_with_one_hidden_layer_are_those_by_hand(run: jb.Run) -> None:
    rows = open_run_split(run, "eval").rows(np.arange(run.experiment.data.batch))
    images = rows["inputs"]
    [found] = make_explain(run, answer=3)(rows, [5])

    def logit(image: Any) -> jax.Array:
        return run.experiment.model.apply(run.variables, image[None])[0, 3]

    image = images[5]
    assert found.answer == 3 and abs(found.missing) < 1e-3
    np.testing.assert_allclose(found.score, logit(image), rtol=1e-5)
    gradient = jax.grad(logit)
    np.testing.assert_allclose(found.maps["saliency"], np.abs(gradient(image))[..., 0], atol=1e-5)
    shares = (np.arange(64) + 0.5) / 64
    mean = sum(gradient(share * image) for share in shares) / 64
    np.testing.assert_allclose(
        found.maps["integrated gradients"], (image * mean)[..., 0], atol=1e-5
    )
    hidden = image.copy()
    hidden[2, 4] = image.mean()  # of 8 pixels a side, each is a square
    np.testing.assert_allclose(
        found.maps["occlusion"][2, 4], logit(image) - logit(hidden), atol=1e-5
    )
    assert "Grad-CAM" not in found.maps  # there is no map of features


def test_integrated_gradients_of_a_square_are_exact() -> None:
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    found = integrated(jax.grad(lambda x: (x**2).sum()), inputs)
    np.testing.assert_allclose(found, inputs**2, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(20, 12), (3, 9)])
def test_occlusion_hides_each_square_once(height: int, width: int) -> None:
    images = np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)
    side = -(-max(height, width) // 8)
    found = occlusion(lambda x: x[:, 1, 2].sum(-1), jnp.asarray(images))
    expected = np.zeros((2, height, width), np.float32)
    top = 1 // side * side
    left = 2 // side * side
    falls = images[:, 1, 2].sum(-1) - images.mean((1, 2)).sum(-1)
    expected[:, top : top + side, left : left + side] = falls[:, None, None]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_grad_cam_weighs_the_last_map_by_its_mean_gradients() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = nn.relu(nn.Conv(5, (3, 3), strides=2, name="last")(x))
            return nn.Dense(2, name="head")(x.mean((1, 2)))

    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    variables = Net().init(jax.random.key(1), images)
    found = grad_cam(lambda: Net().apply(variables, images), lambda logits: logits[:, 1])
    kernel = variables["params"]["head"]["kernel"][:, 1]
    _, kept = Net().apply(variables, images, capture_intermediates=True)
    [features] = kept["intermediates"]["last"]["__call__"]  # [B, 3, 3, 5], before relu
    gradients = np.asarray(kernel) * (np.asarray(features) > 0) / 9
    expected = nn.relu((gradients.mean((1, 2), keepdims=True) * features).sum(-1))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_transformer_of_images_has_no_grad_cam() -> None:
    """Its queries have four axes too."""
    model = jb.models.ViT(classes=3, patch=2, depth=1, width=8, heads=2)
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    variables = model.init(jax.random.key(1), images)
    found = grad_cam(lambda: model.apply(variables, images), lambda logits: logits[:, 1])
    assert found is None


@pytest.mark.parametrize(
    ("pooling", "scan"), [("token", False), ("average", True), ("attention", False)]
)
def test_attention_rollout_is_that_of_einsums(pooling: str, scan: bool, tmp_path: Path) -> None:
    model = jb.models.ViT(
        classes=10, patch=2, depth=2, width=8, heads=2, pooling=pooling, class_token=True, scan=scan
    )
    experiment = small("digits_vit").replace(model=model, mesh=jb.Mesh(data=1))
    run = at_start(experiment, tmp_path, jax.devices()[:1])
    rows = open_run_split(run, "eval").rows(np.arange(16))
    rolled = make_explain(run)(rows, [3])[0].maps["attention rollout"]
    assert rolled.shape == (8, 8)
    np.testing.assert_array_equal(rolled[::2, ::2], rolled[1::2, 1::2])
    seen: list[tuple[Any, ...]] = []

    def remember(method: Any, given: Any, named: Any, context: Any) -> Any:
        if isinstance(context.module, Attention) and context.method_name == "__call__":
            seen.append((given[0], (*given, None)[1], context.module.variables["params"]))
        return method(*given, **named)

    params = nn.meta.unbox(run.variables["params"])
    if scan:
        layers = params["blocks"].pop("block")
        for layer in range(2):
            params["blocks"][f"block_{layer}"] = jax.tree.map(itemgetter(layer), layers)
    with nn.intercept_methods(remember):
        model.clone(scan=False).apply({"params": params}, rows["inputs"][3:4])
    share = np.eye(17)
    for x, memory, given in seen[:2]:
        share = (weights_by_hand(x, memory, given).mean(0) + np.eye(17)) / 2 @ share
    if pooling == "attention":
        share = weights_by_hand(*seen[2]).mean(0) @ share
    picked = {"token": share[0], "average": share[1:].mean(0), "attention": share[0]}[pooling]
    np.testing.assert_allclose(rolled[::2, ::2].ravel(), picked[1:], atol=1e-6)
    assert np.ptp(picked[1:]) > 1e-4


def weights_by_hand(x: Any, memory: Any, params: Any) -> np.ndarray:
    """Softmax of the scaled products of queries and keys of one row, [H, T, S]."""
    params = nn.meta.unbox(params)
    source = x if memory is None else memory
    query = np.einsum("td,dhk->htk", x[0], params["query"]["kernel"])
    query += np.asarray(params["query"]["bias"])[:, None]
    key = np.einsum("sd,dhk->hsk", source[0], params["key_value"]["kernel"][:, 0])
    key += np.asarray(params["key_value"]["bias"])[0][:, None]
    scores = np.exp(np.einsum("htk,hsk->hts", query, key) / query.shape[-1] ** 0.5)
    return scores / scores.sum(-1, keepdims=True)


def test_a_picture_that_is_seen_in_part_has_no_rollout(tmp_path: Path) -> None:
    experiment = small("imagenet_vit_s16").replace(mesh=jb.Mesh(data=1))
    data = dataclasses.replace(experiment.data, batch=2).synthetic()
    run = at_start(experiment.replace(data=data), tmp_path, jax.devices()[:1])
    [found] = make_explain(run)(open_run_split(run, "eval").rows(np.arange(2)), [0])
    assert "saliency" in found.maps and "attention rollout" not in found.maps


def test_padding_has_no_share_of_a_text(tmp_path: Path) -> None:
    experiment = small("pymodule_bert").replace(mesh=jb.Mesh(data=1))
    run = at_start(experiment, tmp_path, jax.devices()[:1])
    rows = open_run_split(run, "eval").rows(np.arange(16))
    for place, each in enumerate(make_explain(run)(rows, range(4))):
        shares = each.maps["attention rollout"]
        np.testing.assert_allclose(shares.sum(), 1, atol=1e-5)
        assert not shares[rows["lengths"][place] :].any() and shares[0] > 0


@pytest.mark.parametrize("types", [None, 2])
def test_only_the_embeddings_of_tokens_are_explained(types: int | None, tmp_path: Path) -> None:
    """Not those of positions or types, in a batch of one row or of more."""
    classified = small("pymodule_bert")
    model = classified.model.clone(types=types, positions="learned", depth=1)
    errors = []
    for rows in (1, 4):
        data = dataclasses.replace(classified.data, batch=rows)
        mesh = jb.Mesh(data=1)
        experiment = classified.replace(model=model, data=data, mesh=mesh)
        run = at_start(experiment, tmp_path, jax.devices()[:1])
        examples = open_run_split(run, "eval").rows(np.arange(rows))
        [found] = make_explain(run)(examples, [0])
        empty = [found.maps["occlusion"][place] for place in range(int(examples["lengths"][0]), 96)]
        np.testing.assert_allclose(empty, 0, atol=1e-5)  # padding does not count
        errors.append(found.score)
    np.testing.assert_allclose(*errors, rtol=1e-4)


def test_command_draws_images(
    run: jb.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    picture = tmp_path / "drawn" / "explain.png"
    words = ["explain", run.directory, tmp_path, "--count", 2, "--picture", picture, "--json"]
    capsys.readouterr()
    assert command_line([*map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out)["explained"]
    assert [Path(row["record"]).name for row in found] == ["0.png", "1.png"]
    [predicted, _, _] = jb.predict(run, str(tmp_path / "*.png"))
    assert found[0]["class"] == predicted["class"]
    assert Image.open(picture).height > 400


@pytest.mark.slow
def test_tokens_of_a_text_are_colored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = jb.fit(small("pymodule_attention_rnn", **FEW), tmp_path / "run")
    explain = ["explain", str(run.directory), "--text", "import os", "x = 1"]
    capsys.readouterr()
    assert command_line(explain) == 0
    assert "import os" in capsys.readouterr().out
    assert command_line([*explain, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["explained"]
    assert "".join(first["tokens"]) == "import os" and len(second["maps"]["saliency"]) == 5
    assert abs(first["completeness error"]) < 1e-3
    assert len(first["maps"]["occlusion"]) == len("import os")


def test_tokens_of_a_language_model_have_its_losses(tmp_path: Path) -> None:
    run = at_start(small("pytext_lstm"), tmp_path)
    rows = open_run_split(run, "eval").rows(np.arange(run.experiment.data.batch))
    [found] = make_explain(run)(rows, [1])
    logits = run.experiment.model.apply(run.variables, rows["inputs"], mutable=["carry"])[0]
    losses = cross_entropy(logits, rows["targets"])[1]
    np.testing.assert_allclose(found.maps["loss"], losses, atol=1e-5)
    np.testing.assert_allclose(found.score, losses.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "eval", "--answer", "10"], "the model has the classes 0 to 9"),
        (["--split", "eval", "--count", "0"], "--count 0: it must be 1 or more"),
        (["--split", "eval", "--picture", "map.foo"], "map.foo: its name must end in .png"),
        ([], "explain needs one of files"),
        (["nothing.png"], "no file or folder nothing.png"),
    ],
)
def test_what_cannot_be_explained_is_refused(run: jb.Run, words: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        command_line(["explain", str(run.directory), *words])


def test_a_picture_that_cannot_be_written_is_reported(run: jb.Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["--split", "eval", "--count", "1", "--picture", str(tmp_path / "file" / "map.png")]
    with pytest.raises(Failed, match=r"map\.png cannot be written: "):
        command_line(["explain", str(run.directory), *words])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_segmentation", "images or texts with classes, or a language model"),
        ("dates_transformer", "explain does not know translators"),
        ("digits_simclr", "dual encoders: their answers are vectors"),
        ("pydoc_qa", "images or texts with classes, or a language model"),
        ("pytext_bert", "images or texts with classes, or a language model"),
    ],
)
def test_runs_of_other_kinds_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=message):
        make_explain(at_start(small(name), tmp_path))
