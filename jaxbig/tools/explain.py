"""Why a run's model answers as it does: which pixels or tokens its answer depends on.

Letters in shape comments: B batch, Y and X height and width, C channels, K classes, L length, D
width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.arrays.dtypes import upcast
from jaxbig.data.core.dataset import Rows
from jaxbig.data.transforms.pixels import as_shares
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.base import Translator
from jaxbig.models.dual_encoder import DualEncoder
from jaxbig.models.language_model import Encoder
from jaxbig.models.layers.basic import Embedding, length_mask
from jaxbig.models.layers.convolution import Convolution
from jaxbig.models.vit import ViT
from jaxbig.program.program import make_forward, make_intermediates
from jaxbig.tracking.figures import PLAIN, grid, printable
from jaxbig.train.run import Run

STEPS = 64
"""Points on the line from the baseline to the input, for integrated gradients."""
PATCHES = 8
"""Occluded squares along a side of an image."""
METHODS = ("saliency", "integrated gradients", "occlusion", "Grad-CAM", "attention rollout", "loss")
"""In the order in which they are shown."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What an answer depends on."""

    answer: int
    """The class that is explained; -1: none, of a language model."""
    score: float
    """Its logit; of a language model the mean loss in nats."""
    missing: float
    """By how much the sum of the integrated gradients misses the difference of the score from that
    of the baseline: 0 if they are complete."""
    maps: dict[str, np.ndarray]
    """How much each pixel [Y, X] or token [L] counts, by method."""


def make_explain(run: Run, answer: int = -1) -> Callable[[Rows, Sequence[int]], list[Explanation]]:
    """Returns `(a batch, places in it) -> an Explanation of each`.

    Images and texts with classes: saliency (Simonyan et al., 2014), integrated gradients from a
    black image or from embeddings of 0 (Sundararajan et al., 2017), occlusion of a square or a
    token (Zeiler and Fergus, 2014), Grad-CAM (Selvaraju et al., 2017) of the last convolution, if
    there is one, and of a Transformer attention rollout (Abnar and Zuidema, 2020). Language models:
    the loss of each token.

    Args:
      run: whose model answers.
      answer: the class to explain; -1: the likeliest.

    Raises:
      Refused: the run has another kind of inputs or outputs, or the model no such class.
    """
    program = run.program
    if isinstance(run.experiment.model, Translator):
        raise Refused("explain does not know translators: their answers are texts.")
    if isinstance(run.experiment.model, DualEncoder):
        raise Refused("explain does not know dual encoders: their answers are vectors.")
    with program.activate():
        state: Any = program.merged(run.state)
        outputs = jax.eval_shape(program.forward, state, program.batch)
    inputs = program.batch["inputs"]
    shape = getattr(outputs, "shape", ())
    is_image = len(inputs.shape) == 4 and inputs.shape[3] in (1, 3)
    is_tokens = len(inputs.shape) == 2 and jnp.issubdtype(inputs.dtype, jnp.integer)
    targets = program.batch.get("targets")
    predicts = targets is not None and targets.shape == inputs.shape
    if is_tokens and predicts and shape[:2] == inputs.shape and len(shape) == 3:
        find = token_losses(run)
    elif len(shape) == 2 and (is_image or is_tokens):
        if not -1 <= answer < shape[1]:
            raise Refused(f"--answer {answer}: the model has the classes 0 to {shape[1] - 1}.")
        find = (of_images if is_image else of_tokens)(run, answer)
    else:
        raise Refused(
            f"explain needs images or texts with classes, or a language model: this run has inputs "
            f"{list(inputs.shape[1:])} and outputs {list(shape[1:])}."
        )

    def explain(rows: Rows, places: Sequence[int]) -> list[Explanation]:
        if is_image:
            rows = {**rows, "inputs": as_shares(rows["inputs"])}
        with program.activate():
            batch = device_put_batch(rows, program.mesh)
            answers, scores, missing, maps = jax.device_get(find(state, batch))
        return [
            Explanation(
                answer=int(answers[place]),
                score=float(scores[place]),
                missing=float(missing[place]),
                maps={name: maps[name][place] for name in METHODS if name in maps},
            )
            for place in places
        ]

    return explain


def of_images(run: Run, answer: int) -> Any:
    """Returns the compiled `(state, batch) -> (answers, scores, missing, maps)` of images, which
    are shares of 0 to 1."""
    forward = make_forward(run.experiment)
    levels = 255.0 if run.program.batch["inputs"].dtype == jnp.uint8 else 1.0

    @jax.jit
    def find(state: Any, batch: Any) -> Any:
        images = batch["inputs"]  # [B, Y, X, C]

        def logits(images: jax.Array) -> jax.Array:
            return upcast(forward(state, {**batch, "inputs": levels * images}))  # [B, K]

        whole = logits(images)
        answers = chosen(whole, answer)
        score = scores_of(answers)
        gradient = jax.grad(lambda x: score(logits(x)).sum())
        complete = integrated(gradient, images)
        missing = score(whole) - score(logits(0 * images)) - complete.sum((1, 2, 3))
        maps = {
            "saliency": jnp.abs(gradient(images)).max(-1),
            "integrated gradients": complete.sum(-1),
            "occlusion": occlusion(lambda x: score(logits(x)), images),
        }
        if (cam := grad_cam(lambda: logits(images), score)) is not None:
            maps["Grad-CAM"] = jax.image.resize(cam, images.shape[:3], "bilinear")
        shares = attention_shares(run, state, {**batch, "inputs": levels * images})
        if shares is not None:
            side: int = run.experiment.model.patch  # type: ignore[attr-defined]
            patches = shares.reshape(len(images), images.shape[1] // side, -1)
            maps["attention rollout"] = patches.repeat(side, 1).repeat(side, 2)
        return answers, score(whole), missing, maps

    return find


def of_tokens(run: Run, answer: int) -> Any:
    """The same of texts with classes: what counts is the embedding of each token."""
    forward = make_forward(run.experiment)

    @jax.jit
    def find(state: Any, batch: Any) -> Any:
        vectors: list[jax.Array] = []
        paths: list[Any] = []

        def is_first(module: nn.Module, x: Any) -> bool:
            """Those of positions or types come after those of tokens."""
            if isinstance(module, Embedding) and x.shape[:2] == batch["inputs"].shape:
                paths.append(module.path)
            return bool(paths) and module.path == paths[0]

        with intercepted(is_first, lambda x: vectors.append(x) or x):
            whole = upcast(forward(state, batch))  # [B, K]
        if not vectors:
            raise Refused("explain needs a model with a layer Embedding of the tokens.")
        given = vectors[0]  # [B, L, D]

        def logits(vectors: jax.Array) -> jax.Array:
            with intercepted(is_first, lambda x: vectors):
                return upcast(forward(state, batch))

        answers = chosen(whole, answer)
        score = scores_of(answers)
        gradient = jax.grad(lambda x: score(logits(x)).sum())
        complete = integrated(gradient, given)

        def without(place: jax.Array) -> jax.Array:
            kept = jnp.arange(given.shape[1]) != place
            return score(whole) - score(logits(given * kept[None, :, None]))  # [B]

        maps = {
            "saliency": jnp.linalg.norm(gradient(given), axis=-1),
            "integrated gradients": complete.sum(-1),
            "occlusion": jax.lax.map(without, jnp.arange(given.shape[1])).T,
        }
        if (shares := attention_shares(run, state, batch)) is not None:
            maps["attention rollout"] = shares
        missing = score(whole) - score(logits(0 * given)) - complete.sum((1, 2))
        return answers, score(whole), missing, maps

    return find


def token_losses(run: Run) -> Any:
    """The same of a language model: the loss of each token in nats."""
    forward = make_forward(run.experiment)

    @jax.jit
    def find(state: Any, batch: Any) -> Any:
        logits = upcast(forward(state, batch))  # [B, L, V]
        found = jax.nn.log_softmax(logits, axis=-1)
        losses = -jnp.take_along_axis(found, batch["targets"][..., None], axis=-1)[..., 0]
        losses *= batch["mask"]
        means = losses.sum(1) / jnp.maximum(batch["mask"].sum(1), 1)
        none = jnp.full(len(losses), -1)
        return none, means, jnp.zeros_like(means), {"loss": losses}

    return find


def chosen(logits: jax.Array, answer: int) -> jax.Array:
    """The class to explain of each row of logits [B, K]."""
    return jnp.argmax(logits, axis=-1) if answer < 0 else jnp.full(len(logits), answer)


def scores_of(answers: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Returns `logits [B, K] -> logits [B]` of these classes."""
    return lambda logits: jnp.take_along_axis(logits, answers[:, None], axis=-1)[:, 0]


def integrated(gradient: Callable[[jax.Array], jax.Array], inputs: jax.Array) -> jax.Array:
    """Integrated gradients from 0, by the midpoint rule; of the shape of the inputs."""
    shares = (jnp.arange(STEPS) + 0.5) / STEPS

    def add(total: jax.Array, share: jax.Array) -> tuple[jax.Array, None]:
        return total + gradient(share * inputs), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(inputs), shares)
    return inputs * total / STEPS


def occlusion(score: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """How far the score falls where a square has the image's mean color; [B, Y, X]."""
    _, height, width, _ = images.shape
    side = -(-max(height, width) // PATCHES)
    down = jnp.arange(height) // side
    across = jnp.arange(width) // side
    mean = images.mean((1, 2), keepdims=True)
    places = jnp.stack(
        jnp.meshgrid(*map(jnp.arange, (-(-height // side), -(-width // side))), indexing="ij"), -1
    )

    def without(place: jax.Array) -> jax.Array:
        hidden = (down == place[0])[:, None] & (across == place[1])[None]  # [Y, X]
        return score(images) - score(jnp.where(hidden[None, ..., None], mean, images))  # [B]

    falls = jax.lax.map(without, places.reshape(-1, 2))  # [squares, B]
    falls = falls.T.reshape(-1, *places.shape[:2])
    return falls[:, down][:, :, across]


def grad_cam(
    logits: Callable[[], jax.Array], score: Callable[[jax.Array], jax.Array]
) -> jax.Array | None:
    """Grad-CAM of the last convolution [B, y, x, C] with several places; [B, y, x], or None."""
    maps: list[jax.Array] = []

    def is_map(module: nn.Module, x: Any) -> bool:
        is_convolution = isinstance(module, Convolution | nn.Conv)
        return is_convolution and x.ndim == 4 and x.shape[1] * x.shape[2] > 1

    with intercepted(is_map, lambda x: maps.append(x) or x):
        logits()
    if not maps:
        return None
    last = len(maps) - 1

    def with_added(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen: list[jax.Array] = []

        def add(x: jax.Array) -> jax.Array:
            seen.append(x)
            return x + added if len(seen) - 1 == last else x

        with intercepted(is_map, add):
            return score(logits()).sum(), seen[last]

    gradient, features = jax.grad(with_added, has_aux=True)(jnp.zeros_like(maps[last]))
    weights = upcast(gradient).mean((1, 2), keepdims=True)  # [B, 1, 1, C]
    return nn.relu((weights * upcast(features)).sum(-1))


def attention_shares(run: Run, state: Any, batch: Any) -> jax.Array | None:
    """How much of each token or patch is in what is classified, by attention rollout; [B, L], or
    None of a model other than a Transformer, and of images of which it sees a part."""
    model: Any = run.experiment.model
    if not isinstance(model, ViT | Encoder):
        return None
    kept = make_intermediates(run.experiment)(state, batch)["intermediates"]
    rolled = rollout(weights_of(model, kept["blocks"]))  # [B, T, T]
    batch_size, length, _ = rolled.shape
    tokens = 0  # that are put before the patches
    if isinstance(model, ViT):
        own = model.class_token
        tokens = int(model.pooling == "token" if own is None else own)
        if length - tokens != math.prod(batch["inputs"].shape[1:3]) // model.patch**2:
            return None
    if model.pooling == "attention":
        pooled = upcast(kept["pooling"]["weights"][0]).mean(2)  # [B, 1, T]
    elif model.pooling in ("token", "first"):
        pooled = jnp.eye(1, length)[None]
    else:
        lengths = batch.get("lengths", jnp.full(batch_size, length))
        real = upcast(length_mask(lengths, length).at[:, :tokens].set(False))  # [B, T]
        pooled = (real / real.sum(1, keepdims=True))[:, None]
    return (pooled @ rolled)[:, 0, tokens:]


def weights_of(model: Any, kept: Any) -> list[jax.Array]:
    """The weights of attention that blocks have kept, of each block [B, T, H, T]."""
    if model.scan:
        return list(kept["block"]["attention"]["weights"][0])
    return [kept[f"block_{layer}"]["attention"]["weights"][0] for layer in range(model.depth)]


def rollout(weights: Sequence[jax.Array]) -> jax.Array:
    """How much of each input is in each output of blocks whose branches are added to what they get:
    the product of (mean of heads + 1) / 2 (Abnar and Zuidema, 2020, equation 1).

    Args:
      weights: of each block [B, T, H, T].

    Returns:
      [B, T, T], whose rows have the sum 1.
    """
    same = jnp.eye(weights[0].shape[1])[None]
    total = same
    for each in weights:
        total = (upcast(each).mean(2) + same) / 2 @ total
    return total


def intercepted(wanted: Callable[[nn.Module, Any], bool], change: Callable[[Any], Any]) -> Any:
    """A context in which what layers return is changed, where that is an array and is wanted."""

    def call(method: Any, arguments: Any, named: Any, context: Any) -> Any:
        returned = method(*arguments, **named)
        is_call = context.method_name == "__call__" and hasattr(returned, "ndim")
        return change(returned) if is_call and wanted(context.module, returned) else returned

    return nn.intercept_methods(call)


def draw(
    images: Sequence[np.ndarray], found: Sequence[Explanation], titles: Sequence[str], file: Path
) -> None:
    """Draws each image and its maps in a row: red is for the answer, blue against it.

    Args:
      images: [Y, X, C] each, of 8 bits or of 0 to 1.
      found: their explanations.
      titles: of the images.
      file: PNG to write.
    """
    names = list(found[0].maps)
    across = 1 + len(names)
    figure, panels = grid(len(images) * across, across, width=2.4, height=2.4)
    for number, (image, each) in enumerate(zip(images, found, strict=True)):
        row = panels[number * across : (number + 1) * across]
        shares = as_shares(image)
        shown = shares[..., 0] if image.shape[2] == 1 else shares
        row[0].imshow(shown, cmap="gray", vmin=0, vmax=1)
        row[0].set_title(printable(titles[number]), **PLAIN)
        for name, axes in zip(names, row[1:], strict=True):
            most = np.abs(each.maps[name]).max() or 1.0
            axes.imshow(each.maps[name], cmap="bwr", vmin=-most, vmax=most)
            axes.set_title(name)
        for axes in row:
            axes.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
