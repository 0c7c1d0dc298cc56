"""Losses and metrics against SciPy, scikit-learn, PyTorch, sacrebleu, plain Python and numbers by
hand."""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax
from sklearn import metrics as sklearn_metrics

from jaxbig.constraints import validate
from jaxbig.distributed.mesh import Mesh, activate
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.layers.parameters import parameter
from jaxbig.objectives import bleu
from jaxbig.objectives.base import Objective, Sum, Sums, cross_entropy, masked
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.ctc import CTC, edit_distance, words_of
from jaxbig.objectives.masked_token import MaskedToken, fingerprint
from jaxbig.objectives.next_token import NextToken
from jaxbig.objectives.prefix_search import prefix_search
from jaxbig.objectives.regression import Regression
from jaxbig.objectives.seq2seq import Seq2Seq, greedy

KEY = jax.random.key(0)
RANDOM: Any = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Whatever ran before, each test draws the same."""
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state


CLASSIFICATION = Classification(classes=5), RANDOM.standard_normal((8, 5)), RANDOM.integers(0, 5, 8)
NEXT_TOKEN = NextToken(vocab=7), RANDOM.standard_normal((4, 6, 7)), RANDOM.integers(0, 7, (4, 6))
BOTH = pytest.mark.parametrize(
    ("objective", "logits", "targets"),
    [CLASSIFICATION, NEXT_TOKEN],
    ids=["classification", "next token"],
)


@functools.partial(jax.jit, static_argnums=(0, 3))
def answered(objective: Objective, logits: Any, batch: Any, train: bool) -> Sums:
    def model(inputs: Any, train: bool, **named: Any) -> Any:
        return logits

    return objective(model, batch, KEY, train)


def outcome(
    objective: Objective,
    logits: Any,
    targets: Any,
    mask: Any = None,
    train: bool = True,
    **more: Any,
) -> Sums:
    """The objective's sums with a model that answers with these logits whatever it sees."""
    mask = np.ones(targets.shape, np.float32) if mask is None else mask
    batch = {"inputs": jnp.zeros(targets.shape), "targets": targets, "mask": mask, **more}
    return answered(objective, jnp.asarray(logits, jnp.float32), batch, train)


def whole(parts: list[Sums]) -> Sums:
    """Sums of parts added in float64, as the loop does."""

    def add(*values: Any) -> Any:
        return np.sum([np.asarray(value, np.float64) for value in values], axis=0)

    return jax.tree.map(add, *parts)


def summary(objective: Objective, *parts: Sums) -> dict[str, float]:
    return objective.summarize(whole(list(parts)))


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Equal up to a share of the largest entry."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=tolerance * max(float(np.abs(theirs).max()), 1e-30)
    )


# --- what all share


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_cross_entropy_is_scipys_at_any_size_of_logits(size: float) -> None:
    logits = (size * RANDOM.standard_normal((3, 4, 9))).astype(np.float32)
    targets = RANDOM.integers(0, 9, (3, 4))
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    expected = logsumexp(np.float64(logits), axis=-1) - chosen
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_cross_entropy_is_softmax_less_one_hot() -> None:
    logits = jnp.asarray(RANDOM.standard_normal((5, 4)))
    targets = jnp.array([0, 1, 2, 3, 3])
    gradient = jax.grad(lambda logits: cross_entropy(logits, targets).sum())(logits)
    np.testing.assert_allclose(gradient, softmax(logits, axis=-1) - np.eye(4)[targets], atol=1e-6)


def test_cross_entropy_of_bfloat16_is_made_in_float32() -> None:
    logits = jnp.asarray(RANDOM.standard_normal((50, 300)), jnp.bfloat16)
    targets = RANDOM.integers(0, 300, 50)
    values = cross_entropy(logits, targets)
    assert values.dtype == jnp.float32
    expected = -np.take_along_axis(log_softmax(np.float64(logits), -1), targets[:, None], -1)[:, 0]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@BOTH
def test_loss_and_accuracy_are_means_over_what_the_mask_leaves(
    objective: Any, logits: Any, targets: Any
) -> None:
    mask = RANDOM.integers(0, 2, targets.shape)
    sums = outcome(objective, logits, targets, np.float32(mask))
    kept = logits[mask == 1]
    chosen = targets[mask == 1]
    losses = [logsumexp(row) - row[target] for row, target in zip(kept, chosen, strict=True)]
    assert set(sums) == {"loss", "accuracy"}
    assert sums["loss"].mean() == pytest.approx(np.mean(losses), rel=1e-5)
    assert sums["accuracy"].mean() == pytest.approx(np.mean(kept.argmax(-1) == chosen), rel=1e-6)
    assert float(sums["loss"].weight) == float(sums["accuracy"].weight) == mask.sum()


@BOTH
def test_what_is_masked_changes_no_bit_of_values_and_gradients(
    objective: Any, logits: Any, targets: Any
) -> None:
    real = np.zeros(targets.shape, bool)
    real[: len(real) // 2] = True
    classes = logits.shape[-1]

    def both(logits: Any, targets: Any) -> Any:
        def loss(logits: Any) -> Any:
            sums = outcome(objective, logits, targets, np.float32(real))
            return sums["loss"].mean(), sums

        return jax.grad(loss, has_aux=True)(jnp.asarray(logits, jnp.float32))

    garbage = np.where(real[..., None], logits, 50 * RANDOM.standard_normal(logits.shape))
    ours = both(logits, targets)
    other = both(garbage, np.where(real, targets, (targets + 1) % classes))
    jax.tree.map(np.testing.assert_array_equal, ours, other)
    assert not np.any(ours[0][~real]) and np.all(ours[0][real])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_sums_of_parts_give_the_mean_of_the_whole(sizes: list[int]) -> None:
    values: Any = np.arange(sum(sizes), dtype=np.float32) ** 2  # parts of unequal size and mean
    parts: list[Any] = np.split(values, np.cumsum(sizes)[:-1])
    sums = [masked(part, np.ones_like(part)) for part in parts]  # type: ignore[arg-type]
    assert whole([{"x": each} for each in sums])["x"].mean() == pytest.approx(
        values.mean(), rel=1e-6
    )


def test_a_mask_of_another_shape_is_an_error() -> None:
    with pytest.raises(Refused, match=r"float32 \[4, 6\], and the mask is float32 \[4\]"):
        masked(jnp.ones((4, 6)), jnp.ones((4,)))


@BOTH
def test_another_number_of_logits_is_refused_with_both(
    objective: Any, logits: Any, targets: Any
) -> None:
    classes = logits.shape[-1]
    with pytest.raises(Refused, match=rf"\b{classes - 1} logits for {classes} "):
        outcome(objective, logits[..., 1:], targets)


def test_side_inputs_reach_the_model_where_the_batch_has_them() -> None:
    seen = {}

    def model(inputs: Any, train: bool, **named: Any) -> Any:
        seen.update(named, train=train)
        return jnp.zeros((3, 5))

    batch = {"inputs": jnp.zeros((3, 2)), "targets": jnp.zeros(3, int), "mask": jnp.ones(3)}
    Classification(classes=5)(model, batch, KEY, False)  # type: ignore[arg-type]
    assert seen == {"train": False}
    Classification(classes=5)(
        model, {**batch, "lengths": jnp.ones(3), "starts": jnp.ones(3)}, KEY, True
    )  # type: ignore[arg-type]
    assert (
        seen["train"]
        and set(seen) == {"train", "lengths", "starts"}
        and np.array_equal(seen["lengths"], np.ones(3))
    )


@pytest.mark.parametrize(
    ("objective", "criterion", "higher"),
    [(Classification(classes=2), "accuracy", True), (NextToken(vocab=2), "loss", False)],
)
def test_criterion_of_the_best_is_a_metric_that_is_there(
    objective: Objective, criterion: str, higher: bool
) -> None:
    assert (objective.criterion, objective.higher_is_better) == (criterion, higher)
    shape = (1,) if isinstance(objective, Classification) else (1, 1)
    assert objective.criterion in outcome(objective, np.zeros((*shape, 2)), np.zeros(shape, int))


# --- classification


def test_accuracy_by_hand() -> None:
    logits = np.array([[3, 1, 2], [0, 5, 1], [1, 2, 9], [4, 0, 3]])
    targets = np.array([0, 1, 0, 2])
    sums = outcome(Classification(classes=3), logits, targets)
    assert (float(sums["accuracy"].total), float(sums["accuracy"].weight)) == (2, 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [(), (0.5, 2.0, 1.0, 0.1, 3.0, 1.5)])
@pytest.mark.parametrize("kind", ["numbers", "distributions", "labels"])
def test_the_loss_and_its_gradient_are_pytorchs(
    kind: str, weights: tuple[float, ...], smoothing: float
) -> None:
    torch = pytest.importorskip("torch")
    logits = np.float32(2 * RANDOM.standard_normal((7, 6)))
    theirs = torch.tensor(logits, requires_grad=True)
    weight = torch.tensor(weights) if weights else None
    if kind == "numbers":
        targets = RANDOM.integers(0, 6, 7)
        expected = torch.nn.functional.cross_entropy(
            theirs, torch.tensor(targets), weight, label_smoothing=smoothing
        )
    elif kind == "distributions":  # PyTorch divides by the rows, we by what they weigh
        targets = np.float32(RANDOM.dirichlet(np.ones(6), 7))
        expected = torch.nn.functional.cross_entropy(
            theirs, torch.tensor(targets), weight, label_smoothing=smoothing
        )
        expected = expected * 7 / float((targets * np.array(weights or np.ones(6))).sum())
    else:
        targets = np.float32(RANDOM.integers(0, 2, (7, 6)))
        smooth = torch.tensor(targets) * (1 - smoothing) + smoothing / 2
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            theirs, smooth, weight, reduction="sum"
        )
        expected = losses / (7 * (sum(weights) or 6))
    expected.backward()
    objective = Classification(
        classes=6, smoothing=smoothing, class_weights=weights, multi_label=kind == "labels"
    )

    def loss(logits: jax.Array) -> Any:
        return outcome(objective, logits, targets, np.ones(7))["loss"].mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    close(value, expected.item())
    close(gradient, theirs.grad)


@pytest.mark.parametrize("weights", [(), (0.5, 2.0, 1.0)])
def test_an_evaluation_has_the_cross_entropy_without_smoothing_too(
    weights: tuple[float, ...],
) -> None:
    logits = RANDOM.standard_normal((7, 3))
    targets = RANDOM.integers(0, 3, 7)
    smooth, plain = (
        Classification(classes=3, smoothing=each, class_weights=weights) for each in (0.3, 0.0)
    )
    found, expected = (outcome(each, logits, targets, train=False) for each in (smooth, plain))
    assert float(found["cross_entropy"].mean()) == pytest.approx(
        float(expected["loss"].mean()), rel=1e-6
    )
    assert float(found["loss"].mean()) != pytest.approx(float(expected["loss"].mean()), rel=1e-3)
    assert "cross_entropy" not in expected and "cross_entropy" not in outcome(
        smooth, logits, targets
    )


def test_a_distribution_with_one_class_is_its_number() -> None:
    logits = RANDOM.standard_normal((9, 4))
    targets = RANDOM.integers(0, 4, 9)
    objective = Classification(classes=4, smoothing=0.2, class_weights=(1.0, 2.0, 0.0, 4.0))
    ours, other = (
        outcome(objective, logits, each, np.ones(9)) for each in (targets, np.eye(4)[targets])
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, other)
    assert float(ours["loss"].weight) == np.array([1, 2, 0, 4])[targets].sum()


def test_top_five_and_macro_scores_are_scikit_learns() -> None:
    logits = RANDOM.standard_normal((50, 8))
    targets = RANDOM.integers(0, 6, 50)  # two classes never occur
    logits[:, 7] -= 10  # and one is never predicted
    mask = np.float32(np.arange(50) < 43)
    objective = Classification(classes=8, macro=True)
    parts = [
        outcome(objective, logits[rows], targets[rows], mask[rows], train=False)
        for rows in (slice(32), slice(32, 50))
    ]
    ours = summary(objective, *parts)
    kept = targets[:43]
    best = logits[:43].argmax(-1)
    options: Any = {"average": "macro", "labels": range(8), "zero_division": 0}
    expected = sklearn_metrics.precision_recall_fscore_support(kept, best, **options)
    assert [ours[f"macro_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(
        expected[:3], rel=1e-6
    )
    iou = sklearn_metrics.jaccard_score(kept, best, **options)
    assert ours["macro_iou"] == pytest.approx(iou, rel=1e-6)
    five = sklearn_metrics.top_k_accuracy_score(kept, logits[:43], k=5, labels=range(8))
    assert ours["top5_accuracy"] == pytest.approx(five, rel=1e-6)
    assert all(
        np.ndim(each.total) == 0 for each in outcome(objective, logits, targets, mask).values()
    )


def test_scores_of_many_labels_are_scikit_learns() -> None:
    logits = RANDOM.standard_normal((40, 4))
    targets = RANDOM.integers(0, 2, (40, 4))
    objective = Classification(classes=4, multi_label=True, macro=True)
    chosen = logits > 0
    ours = summary(objective, outcome(objective, logits, targets, np.ones(40), train=False))
    assert ours["accuracy"] == pytest.approx(np.mean(chosen == targets))
    assert ours["exact_match"] == pytest.approx(sklearn_metrics.accuracy_score(targets, chosen))
    assert ours["macro_f1"] == pytest.approx(
        sklearn_metrics.f1_score(targets, chosen, average="macro"), rel=1e-6
    )


def test_a_class_for_each_pixel() -> None:
    logits = RANDOM.standard_normal((2, 3, 4, 5))
    targets = RANDOM.integers(0, 5, (2, 3, 4))
    flat = outcome(Classification(classes=5), logits.reshape(-1, 5), targets.reshape(-1))
    jax.tree.map(close, outcome(Classification(classes=5), logits, targets), flat)


@pytest.mark.parametrize(
    ("objective", "shape", "match"),
    [
        (Classification(classes=3, class_weights=(1.0, 2.0)), (4,), "2 for 3"),
        (Classification(classes=3, smoothing=1.0), (4,), "smoothing 1.0"),
        (Classification(classes=3, multi_label=True), (4,), r"\(4,\) for logits \(4, 3\)"),
        (Classification(classes=3), (4, 2), r"\(4, 2\) for logits \(4, 3\)"),
    ],
)
def test_what_does_not_fit_a_classification_is_refused(
    objective: Objective, shape: Any, match: str
) -> None:
    with pytest.raises(Refused, match=match):
        outcome(objective, np.zeros((4, 3)), np.zeros(shape, int), np.ones(4))


# --- the next token


def test_uniform_logits_of_256_tokens_are_8_bits_each_and_bits_per_byte_need_a_ratio() -> None:
    objective = NextToken(vocab=256)
    targets = RANDOM.integers(0, 256, (2, 8))
    sums = outcome(objective, np.zeros((2, 8, 256)), targets)
    means = summary(objective, sums)
    assert means["perplexity"] == pytest.approx(256, rel=1e-5)
    assert means["bits_per_token"] == pytest.approx(8, rel=1e-5) and "bits_per_byte" not in means
    assert means["loss"] == pytest.approx(math.log(256), rel=1e-6)
    assert summary(NextToken(vocab=256, bytes_per_token=4.0), sums)[
        "bits_per_byte"
    ] == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "perplexity"),
    [(0.0, 1.0), (math.log(10), 10.0), (1e4, math.inf), (math.inf, math.inf)],
)
def test_perplexity_is_e_to_the_loss_and_never_an_error(loss: float, perplexity: float) -> None:
    assert NextToken(vocab=2).summarize({"loss": Sum(loss, 1.0)})["perplexity"] == pytest.approx(
        perplexity
    )


def test_perplexity_of_no_number_is_no_number() -> None:
    means = NextToken(vocab=2).summarize({"loss": Sum(math.nan, 1.0)})
    assert math.isnan(means["perplexity"]) and math.isnan(means["bits_per_token"])


def test_the_z_loss_is_in_the_loss_and_in_nothing_else() -> None:
    _, logits, targets = NEXT_TOKEN
    plain, more = (outcome(NextToken(vocab=7, z_loss=z), logits, targets) for z in (0.0, 0.01))
    extra = 0.01 * np.mean(logsumexp(logits, axis=-1) ** 2)
    before = summary(NextToken(vocab=7), plain)
    after = summary(NextToken(vocab=7, z_loss=0.01), more)
    assert after["loss"] == pytest.approx(before["loss"] + extra, rel=1e-5)
    assert after["cross_entropy"] == pytest.approx(before["loss"], rel=1e-6)
    for name in ("perplexity", "bits_per_token", "accuracy"):
        assert after[name] == pytest.approx(before[name], rel=1e-6)


class Language(nn.Module):
    """Logits of the token before and of the one before it."""

    vocab: int
    width: int = 8
    logit_soft_cap: float | None = None

    def setup(self) -> None:
        init = nn.initializers.normal(1.0)
        self.table = parameter(self, "table", init, (self.vocab, self.width), (None, "embed"))
        self.head = parameter(self, "head", init, (self.width, self.vocab), ("embed", "vocab"))

    def hidden(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        x = self.table[tokens]
        return jnp.tanh(x + jnp.roll(x, 1, axis=1))

    def unembedding(self) -> jax.Array:
        return self.head

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        logits = self.hidden(tokens) @ self.head[None]
        if self.logit_soft_cap:
            logits = self.logit_soft_cap * jnp.tanh(logits / self.logit_soft_cap)
        return nn.with_logical_constraint(logits, ("batch", None, None))


def gradient_of(objective: Objective, model: nn.Module) -> Any:
    """`(params, batch) -> (gradient, sums)` of the objective's mean loss, as a train step has
    it."""

    def loss(params: Any, batch: Any) -> Any:
        sums = nn.apply(lambda forward: objective(forward, batch, KEY, True), model)(
            {"params": params}
        )
        return sums["loss"].mean(), sums

    return jax.grad(loss, has_aux=True)


def start(objective: Objective, model: nn.Module, batch: Any) -> Any:
    """The model's parameters, made by what the objective calls."""
    init = nn.init(lambda forward: objective(forward, batch, KEY, False), model)
    return nn.meta.unbox(dict(jax.jit(init)(KEY)))


def text(rows: int, length: int, vocab: int) -> dict[str, Any]:
    tokens = RANDOM.integers(0, vocab, (2, rows, length)).astype(np.int32)
    mask = np.float32(RANDOM.integers(0, 2, (rows, length)))
    mask[:, 0] = 1
    return {"inputs": tokens[0], "targets": tokens[1], "mask": mask}


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(2, 9),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, 1.5]),
)
@settings(max_examples=6, deadline=None)
def test_chunked_loss_is_the_whole_loss(
    rows: int, chunks: int, each: int, length: int, z_loss: float, cap: float | None
) -> None:
    vocab = chunks * each
    batch = text(rows, length, vocab)
    model = Language(vocab, logit_soft_cap=cap)
    ours = NextToken(vocab, z_loss, chunks)
    plain = NextToken(vocab, z_loss)
    params = {
        "table": RANDOM.standard_normal((vocab, 8)),
        "head": RANDOM.standard_normal((8, vocab)),
    }
    params = jax.tree.map(np.float32, params)
    jax.tree.map(
        close, *(jax.jit(gradient_of(each, model))(params, batch) for each in (ours, plain))
    )


def test_chunked_loss_never_holds_all_logits() -> None:
    rows = 2
    length = 64
    vocab = 4800
    batch = text(rows, length, vocab)
    model = Language(vocab)
    params = start(NextToken(vocab), model, batch)["params"]
    held = {}
    for chunks in (0, 16):
        step = (
            jax.jit(gradient_of(NextToken(vocab, chunks=chunks), model))
            .lower(params, batch)
            .compile()
        )
        held[chunks] = step.memory_analysis().temp_size_in_bytes
        shapes = (
            f"f32[{rows},{length},{vocab}]",
            f"f32[{rows * length},{vocab}]",
            f"f32[16,{rows},{length},300]",
        )
        assert any(shape in step.as_text() for shape in shapes) == (chunks == 0)
    assert held[16] < 0.3 * rows * length * vocab * 4 < held[0]


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh(data=2, fsdp=2, tensor=2),
        *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in (Mesh(data=8), Mesh(fsdp=8))),
    ],
    ids=str,
)
def test_chunked_loss_is_the_same_on_a_mesh(mesh: Mesh) -> None:
    batch = text(8, 8, 16)
    model = Language(16)
    objective = NextToken(16, z_loss=0.01, chunks=4)
    params = start(objective, model, batch)["params"]
    expected = jax.jit(gradient_of(objective, model))(params, batch)
    built = mesh.build()
    with activate(built):
        ours = jax.jit(gradient_of(objective, model))(params, device_put_batch(batch, built))
    jax.tree.map(close, ours, expected)


def test_loss_that_cannot_be_chunked_is_refused() -> None:
    batch = text(2, 6, 5)
    with pytest.raises(Refused, match="4 chunks do not divide vocab 5"):
        start(NextToken(5, chunks=4), Language(5), batch)
    with pytest.raises(Refused, match="Fixed has no `hidden`"):
        start(NextToken(5, chunks=5), Fixed(5), batch)


class Fixed(nn.Module):
    """One parameter a token, whatever it sees."""

    vocab: int

    @nn.compact
    def __call__(self, tokens: jax.Array, lengths: Any = None, train: bool = False) -> jax.Array:
        bias = self.param("bias", nn.initializers.normal(1.0), (self.vocab,))
        return jnp.broadcast_to(bias, (*tokens.shape, self.vocab))


# --- masked tokens

MASKED = MaskedToken(vocab=50, mask_token=20)
CORRUPT = jax.jit(MASKED.corrupt)


def test_tokens_are_hidden_as_often_as_devlin_says() -> None:
    tokens = RANDOM.integers(0, 50, (64, 500))
    mask = np.ones((64, 500))
    tokens[tokens == 20] = 21
    seen, chosen = CORRUPT(tokens, mask, KEY)
    assert not np.any((seen != tokens) & ~chosen)
    seen = seen[chosen]
    before = tokens[chosen]
    number = int(chosen.sum())
    changed = (seen != before) & (seen != 20)
    # a random token is the old one 1 time in 49
    for count, of, share in (
        (number, tokens.size, 0.15),
        (np.sum(seen == 20), number, 0.8),
        (np.sum(changed), number, 0.1 * 48 / 49),
    ):
        assert abs(count - share * of) < 4 * math.sqrt(of * share * (1 - share))
    counts = np.bincount(seen[changed], minlength=50)
    assert counts[20] == 0 and np.all(counts[np.arange(50) != 20] > 0) and len(counts) == 50


def test_row_is_masked_the_same_in_any_batch_and_otherwise_with_another_key() -> None:
    tokens = RANDOM.integers(0, 50, (16, 30))
    mask = np.float32(np.arange(30) < 25)[None].repeat(16, 0)
    seen, chosen = CORRUPT(tokens, mask, KEY)
    order = RANDOM.permutation(16)[:5]
    for ours, expected in zip(
        CORRUPT(tokens[order], mask[order], KEY), (seen, chosen), strict=True
    ):
        np.testing.assert_array_equal(ours, expected[order])
    assert not np.array_equal(CORRUPT(tokens, mask, jax.random.key(1))[0], seen)
    padded = np.where(mask > 0, tokens, 3)  # what padding holds is nothing
    np.testing.assert_array_equal(CORRUPT(padded, mask, KEY)[1], chosen)
    mesh = Mesh(data=4, fsdp=2).build()
    with activate(mesh):
        ours = CORRUPT(**device_put_batch({"tokens": tokens, "mask": mask}, mesh), key=KEY)
    jax.tree.map(np.testing.assert_array_equal, ours, (seen, chosen))


def test_fingerprint_is_the_polynomial_and_differs_between_orders() -> None:
    tokens: Any = [[1, 2, 3], [3, 2, 1], [1, 2, 3]]
    factor = 2_654_435_761
    hand = [
        sum((token + 1) * factor ** (i + 1) for i, token in enumerate(row)) % 2**32
        for row in tokens
    ]
    assert fingerprint(jnp.array(tokens), jnp.ones((3, 3))).tolist() == hand
    assert hand[0] != hand[1]


def test_some_token_is_hidden_in_each_row_and_none_in_padding() -> None:
    tokens = RANDOM.integers(0, 50, (16, 30))
    mask = np.float32(np.arange(30) < 2)[None].repeat(16, 0)
    mask[15] = 0
    _, chosen = CORRUPT(tokens, mask, KEY)
    assert np.all(chosen[:15].any(axis=1)) and not np.any(chosen[:, 2:]) and not np.any(chosen[15])


def test_the_masked_loss_is_over_what_was_chosen() -> None:
    tokens = RANDOM.integers(0, 50, (16, 30))
    table = np.float32(RANDOM.standard_normal((50, 50)))
    batch = {"inputs": tokens, "mask": np.ones((16, 30), np.float32)}

    def model(inputs: Any, train: bool, **named: Any) -> Any:
        return jnp.asarray(table)[inputs]

    sums = jax.jit(lambda batch: MASKED(model, batch, KEY, True))(batch)
    corrupted, chosen = (np.asarray(each) for each in CORRUPT(tokens, batch["mask"], KEY))
    logits = table[corrupted]
    losses = -np.take_along_axis(log_softmax(logits, -1), tokens[..., None], -1)[..., 0]
    assert sums["loss"].mean() == pytest.approx(losses[chosen].mean(), rel=1e-5)
    assert float(sums["accuracy"].weight) == chosen.sum()
    means = summary(MASKED, sums)
    assert means["bits_per_token"] == pytest.approx(losses[chosen].mean() / math.log(2), rel=1e-5)
    assert means["perplexity"] == pytest.approx(math.exp(losses[chosen].mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "match"), [({"rate": 0.0}, "rate 0.0"), ({"mask_token": 9}, "mask_token 9 .* 9 ")]
)
def test_masking_that_cannot_be_is_refused(changes: Any, match: str) -> None:
    objective = MaskedToken(**{"vocab": 9, "mask_token": 8, **changes})
    with pytest.raises(Refused, match=match):
        outcome(objective, np.zeros((2, 4, 9)), np.zeros((2, 4), int))


# --- a sequence from a sequence

VOCAB = 7
START = 1
END = 2


class Translator(nn.Module):
    """Scores of the source's token at a place, of the token before, and of the mean of all tokens
    before."""

    def setup(self) -> None:
        self.tables = [
            self.param(name, nn.initializers.normal(1.0), (VOCAB, VOCAB)) for name in "abc"
        ]

        if self.is_mutable_collection("cache") and not self.is_initializing():
            self.place = self.variable("cache", "place", jnp.zeros, (), jnp.int32)
            self.total = self.variable("cache", "total", jnp.zeros, (), jnp.float32)

    def encode(self, inputs: jax.Array, lengths: Any = None, train: bool = False) -> jax.Array:
        there = jnp.arange(inputs.shape[1])[None] < lengths[:, None]
        return jnp.where(there[..., None], self.tables[0][inputs], 0.0)

    def decode(
        self, previous: jax.Array, memory: jax.Array, train: bool = False, cache: int = 0
    ) -> jax.Array:
        x = self.tables[2][previous]
        total = jnp.cumsum(x, axis=1)
        if cache:
            self.total.value = total = x + jnp.broadcast_to(self.total.value, x.shape)
            memory = jax.lax.dynamic_slice_in_dim(memory, self.place.value, 1, axis=1)
            self.place.value = self.place.value + 1
        return memory[:, : previous.shape[1]] + self.tables[1][previous] + 0.3 * total

    def __call__(
        self, inputs: jax.Array, previous: jax.Array, lengths: Any = None, train: bool = False
    ) -> jax.Array:
        return self.decode(previous, self.encode(inputs, lengths), train)


def pairs(rows: int, length: int) -> dict[str, Any]:
    """Sources, and targets that end; the last row is padding."""
    inputs, targets = RANDOM.integers(3, VOCAB, (2, rows, length), np.int32)
    lengths, ends = RANDOM.integers(2, length + 1, (2, rows), np.int32)
    place = np.arange(length)[None]
    targets = np.where(
        place < ends[:, None] - 1, targets, np.where(place == ends[:, None] - 1, END, 0)
    ).astype(np.int32)
    mask = np.float32(place < ends[:, None])
    mask[-1] = 0
    return {"inputs": inputs, "lengths": lengths, "targets": targets, "mask": mask}


def written(model: Any, variables: Any, batch: Any, length: int) -> Any:
    """What the model writes, by plain loops over whole prefixes."""
    rows = []
    apply = jax.jit(model.apply)
    for row in range(len(batch["inputs"])):
        tokens = [START]
        while len(tokens) <= length and END not in tokens[1:]:
            source = batch["inputs"][row : row + 1], jnp.array([tokens])
            logits = apply(variables, *source, lengths=batch["lengths"][row : row + 1])
            tokens.append(int(jnp.argmax(logits[0, -1])))
        rows.append(tokens[1:] + [0] * (length + 1 - len(tokens)))
    return np.array(rows)


def test_greedy_writes_what_plain_loops_write() -> None:
    batch = pairs(6, 5)
    model = Translator()
    variables = start(Seq2Seq(VOCAB, START, END), model, batch)
    assert set(variables) == {"params"}  # no cache is part of the state
    write = nn.apply(lambda forward: greedy(forward, batch, START, END, 5), model)
    tokens = np.asarray(jax.jit(write)(variables))
    np.testing.assert_array_equal(tokens, written(model, variables, batch, 5))
    assert (tokens == END).any() and len(np.unique(tokens)) > 3
    with activate(mesh := Mesh(data=-1).build()):
        wide = {name: np.concatenate([each, each[:2]]) for name, each in batch.items()}
        again = jax.jit(
            lambda batch: nn.apply(lambda f: greedy(f, batch, START, END, 5), model)(variables)
        )
        np.testing.assert_array_equal(
            again(device_put_batch(wide, mesh)), np.concatenate([tokens, tokens[:2]])
        )


def test_exact_match_and_bleu_are_of_what_was_written() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    batch = pairs(12, 6)
    model = Translator()
    objective = Seq2Seq(VOCAB, START, END, bleu=True)
    variables = start(objective, model, batch)
    tokens = written(model, variables, batch, 6)
    for row in range(0, 6):  # these rows are answered rightly
        batch["targets"][row] = tokens[row]
        ends = list(tokens[row]).index(END) if END in tokens[row] else 5
        batch["mask"][row] = np.arange(6) <= ends
    evaluate = jax.jit(
        lambda batch: nn.apply(lambda f: objective(f, batch, KEY, False), model)(variables)
    )
    parts = [
        evaluate(jax.tree.map(lambda x, rows=rows: x[rows], batch))
        for rows in (slice(8), slice(8, 12))
    ]
    ours = summary(objective, *parts)
    wrong = [np.any((tokens != batch["targets"])[row][batch["mask"][row] > 0]) for row in range(11)]
    assert (
        ours["exact_match"] == pytest.approx(1 - np.mean(wrong)) and 0.5 < ours["exact_match"] < 1
    )

    def sentence(row: Any) -> str:
        return " ".join(map(str, [*row, END][: [*row, END].index(END)]))

    references = [[sentence(batch["targets"][row]) for row in range(11)]]
    expected = sacrebleu.corpus_bleu(
        [sentence(tokens[row]) for row in range(11)], references, tokenize="none", force=True
    )
    assert ours["bleu"] == pytest.approx(expected.score, rel=1e-9)


def test_the_smoothed_loss_of_a_sequence_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    batch = pairs(4, 5)
    model = Translator()
    objective = Seq2Seq(VOCAB, START, END, smoothing=0.1)
    params = start(objective, model, batch)["params"]
    gradient, sums = jax.jit(gradient_of(objective, model))(params, batch)
    previous = np.concatenate([np.full((4, 1), START), batch["targets"][:, :-1]], axis=1)
    logits = model.apply({"params": params}, batch["inputs"], previous, lengths=batch["lengths"])
    theirs = torch.tensor(np.array(logits), requires_grad=True)
    targets = torch.tensor(np.where(batch["mask"] > 0, batch["targets"], -100)).long()
    loss = torch.nn.functional.cross_entropy(
        theirs.reshape(-1, VOCAB), targets.reshape(-1), label_smoothing=0.1
    )
    loss.backward()
    close(sums["loss"].mean(), loss.item())
    by_token = np.zeros((VOCAB, VOCAB))  # the second table is looked up by the token before
    np.add.at(by_token, previous, theirs.grad.numpy())
    close(gradient["b"], by_token)
    assert set(sums) == {"loss", "accuracy"}


def test_a_start_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(Refused, match="start 7 must be one of the 7 tokens"):
        start(Seq2Seq(VOCAB, 7, END), Translator(), pairs(2, 4))


COUNT = jax.jit(bleu.counts)
tokens_of = st.lists(st.lists(st.integers(3, 6), max_size=9), min_size=4, max_size=4)


@given(tokens_of, tokens_of, st.sampled_from([2, 4]))
@settings(max_examples=12, deadline=None)
def test_bleu_is_sacrebleus(
    given_rows: list[list[int]], references: list[list[int]], cut: int
) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    rows = min(len(given_rows), len(references))

    def padded(lists: list[list[int]]) -> np.ndarray:
        return np.array([[*row, *[9] * (9 - len(row))] for row in lists])

    def sizes(lists: list[list[int]]) -> np.ndarray:
        return np.array([len(row) for row in lists])

    parts = [
        COUNT(padded(h), sizes(h), padded(r), sizes(r))
        for h, r in (
            (given_rows[at], references[at])
            for at in (slice(min(cut, rows)), slice(min(cut, rows), rows))
        )
        if h
    ]

    def sentences(lists: list[list[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in lists[:rows]]

    expected = sacrebleu.corpus_bleu(
        sentences(given_rows), [sentences(references)], tokenize="none", force=True
    )
    assert bleu.score(whole(parts)) == pytest.approx(expected.score, rel=1e-9)


# --- regression


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_regression_is_pytorchs_and_r2_scikit_learns(loss: Any) -> None:
    torch = pytest.importorskip("torch")
    given_values, targets = np.float32(
        RANDOM.standard_normal((2, 20, 3)) * [1, 2, 30] + [0, 5, 100]
    )
    mask = np.float32(np.arange(20) < 17)
    objective = Regression(loss, delta=0.7, center=(0.0, 5.0, 100.0))
    theirs = torch.tensor(given_values[:17], requires_grad=True)
    named = {
        "mse": torch.nn.MSELoss(),
        "mae": torch.nn.L1Loss(),
        "huber": torch.nn.HuberLoss(delta=0.7),
    }
    expected = named[loss](theirs, torch.tensor(targets[:17]))
    expected.backward()

    def value(x: jax.Array) -> Any:
        return outcome(objective, x, targets, mask)["loss"].mean()

    ours, gradient = jax.value_and_grad(value)(given_values)
    close(ours, expected.item())
    close(gradient[:17], theirs.grad)
    assert not np.any(gradient[17:])
    parts = [
        outcome(objective, given_values[at], targets[at], mask[at], False)
        for at in (slice(12), slice(12, 20))
    ]
    means = summary(objective, *parts)
    assert means["r2"] == pytest.approx(
        sklearn_metrics.r2_score(targets[:17], given_values[:17]), rel=1e-4
    )
    absolute = sklearn_metrics.mean_absolute_error(targets[:17], given_values[:17])
    assert means["mae"] == pytest.approx(absolute, rel=1e-5)
    assert set(outcome(objective, given_values, targets, mask)) == {"loss", "mse", "mae"}


def test_r2_far_from_zero_wants_a_center() -> None:
    targets = np.float32(2000 + RANDOM.standard_normal(1000))
    given_values = targets + np.float32(0.5 * RANDOM.standard_normal(1000))
    expected = sklearn_metrics.r2_score(np.float64(targets), np.float64(given_values))
    objective = Regression(center=(2000.0,))
    ours = summary(objective, outcome(objective, given_values[:, None], targets, train=False))["r2"]
    assert ours == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("given_value", "r2"), [(3.0, 1.0), (4.0, 0.0)])
def test_r2_of_a_constant_is_scikit_learns(given_value: float, r2: float) -> None:
    sums = outcome(Regression(), np.full(5, given_value), np.full(5, 3.0), train=False)
    assert (
        summary(Regression(), sums)["r2"]
        == r2
        == sklearn_metrics.r2_score(np.full(5, 3.0), np.full(5, given_value))
    )


def test_answers_of_another_shape_are_refused_with_both() -> None:
    with pytest.raises(Refused, match=r"\(4, 2\) for targets \(4, 3\)"):
        outcome(Regression(), np.zeros((4, 2)), np.zeros((4, 3)), np.ones(4))


# --- connectionist temporal classification


def frames(rows: int = 6, length: int = 12, width: int = 5, classes: int = 4) -> dict[str, Any]:
    targets = RANDOM.integers(1, classes, (rows, width))
    sizes = RANDOM.integers(1, width + 1, rows)
    mask = np.float32(np.arange(width)[None] < sizes[:, None])
    lengths = RANDOM.integers(2 * width, length + 1, rows)
    logits = np.float32(2 * RANDOM.standard_normal((rows, length, classes)))
    return {
        "logits": logits,
        "targets": targets,
        "mask": mask,
        "lengths": lengths,
        "inputs": jnp.zeros((rows, length)),
    }


def test_ctc_and_its_gradient_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    batch = frames()
    batch["mask"][-1] = 0  # padding
    theirs = torch.tensor(batch["logits"][:5], requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        theirs.log_softmax(-1).transpose(0, 1),
        torch.tensor(batch["targets"][:5]),
        torch.tensor(batch["lengths"][:5]),
        torch.tensor(batch["mask"][:5].sum(1).astype(int)),
        reduction="none",
    ).mean()
    expected.backward()

    def value(logits: jax.Array) -> Any:
        return outcome(CTC(classes=4), **{**batch, "logits": logits})["loss"].mean()

    ours, gradient = jax.jit(jax.value_and_grad(value))(batch["logits"])
    close(ours, expected.item())
    close(gradient[:5], theirs.grad)
    assert not np.any(gradient[5])


def levenshtein(x: list[int], y: list[int]) -> int:
    row = list(range(len(y) + 1))
    for i, a in enumerate(x):
        left = [i + 1]
        for j, b in enumerate(y):
            left.append(min(left[j] + 1, row[j + 1] + 1, row[j] + (a != b)))
        row = left
    return row[-1]


DISTANCE = jax.jit(edit_distance)
letters = st.lists(st.integers(1, 4), max_size=7)


@given(st.lists(st.tuples(letters, letters), min_size=3, max_size=3), st.randoms())
@settings(max_examples=30, deadline=None)
def test_edit_distance_is_plain_pythons(
    rows: list[tuple[list[int], list[int]]], random: Any
) -> None:
    given_tokens = RANDOM.integers(1, 5, (3, 10))
    present = np.zeros((3, 10), bool)
    for row, (tokens, _) in enumerate(rows):  # at any places, with other tokens between
        places = sorted(random.sample(range(10), len(tokens)))
        given_tokens[row, places] = tokens
        present[row, places] = True
    targets = np.array([[*target, *[3] * (7 - len(target))] for _, target in rows])
    mask = np.arange(7)[None] < np.array([len(target) for _, target in rows])[:, None]
    ours = DISTANCE(given_tokens, present, targets, mask)
    assert ours.tolist() == [levenshtein(tokens, target) for tokens, target in rows]


def test_the_error_rate_is_of_what_is_heard() -> None:
    batch = frames(rows=9)
    batch["mask"][-1] = 0
    batch["logits"][0] = 9 * np.eye(4)[[0, 1, 1, 0, 1, 2, 2, 3, 0, 0, 0, 0]]  # best: 1 1 2 3
    batch["targets"][0] = [1, 1, 2, 3, 0]
    batch["mask"][0] = [1, 1, 1, 1, 0]
    edits = 0
    words = 0
    right = 0
    for row in range(8):
        best = batch["logits"][row, : batch["lengths"][row]].argmax(-1)
        heard = [int(a) for a, b in zip(best, [0, *best[:-1]], strict=True) if a not in (0, b)]
        target = batch["targets"][row][batch["mask"][row] > 0].tolist()
        edits = edits + levenshtein(heard, target)
        words = words + len(target)
        right = right + (heard == target)
    objective = CTC(classes=4)
    inputs = batch.pop("inputs")

    def at(rows: slice) -> dict[str, Any]:
        return {name: each[rows] for name, each in {**batch, "inputs": inputs}.items()}

    parts = [outcome(objective, **at(rows), train=False) for rows in (slice(4), slice(4, 9))]
    means = summary(objective, *parts)
    assert means["error_rate"] == pytest.approx(edits / words)
    assert means["exact_match"] == right / 8 >= 1 / 8
    assert objective.criterion in means and means["impossible"] == 0


def test_example_without_an_alignment_is_counted_and_left_out() -> None:
    batch = frames(rows=2)
    batch["targets"][0] = [1, 1, 2, 3, 0]
    batch["mask"][0] = [1, 1, 1, 1, 0]
    batch["lengths"][0] = 4  # needs 5
    sums = outcome(CTC(classes=4), **batch)
    assert float(sums["impossible"].total) == 1 == float(sums["loss"].weight)
    gradient = jax.grad(lambda x: outcome(CTC(classes=4), **{**batch, "logits": x})["loss"].total)(
        batch["logits"]
    )
    assert not np.any(gradient[0]) and np.all(np.isfinite(gradient)) and np.any(gradient[1])
    batch["lengths"][0] = 5
    assert float(outcome(CTC(classes=4), **batch)["impossible"].total) == 0


def test_fewer_frames_than_the_inputs_have_are_refused_with_both() -> None:
    batch = frames()
    with pytest.raises(Refused, match="6 frames for 12"):
        outcome(CTC(classes=4), **{**batch, "logits": batch["logits"][:, ::2]})


def test_a_model_of_fewer_frames_has_a_stride() -> None:
    batch = frames()
    whole = outcome(CTC(classes=4), train=False, **batch)
    inputs = jnp.zeros((6, 23))  # each second frame, and one more
    lengths = 2 * batch["lengths"] - 1
    half = {**batch, "inputs": inputs, "lengths": lengths}
    jax.tree.map(close, outcome(CTC(classes=4, stride=2), train=False, **half), whole)
    with pytest.raises(Refused, match="12 frames for 23: CTC needs 8, with stride 3"):
        outcome(CTC(classes=4, stride=3), **half)


SEARCH = jax.jit(prefix_search, static_argnums=2)


def spelled(logits: np.ndarray) -> dict[tuple[int, ...], float]:
    """The log probability of each sequence, by the sum over all paths of [L, K]."""
    logs = log_softmax(logits, axis=-1)
    found: dict[tuple[int, ...], list[float]] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        sequence = tuple(label for label, _ in itertools.groupby(path) if label)
        found.setdefault(sequence, []).append(
            float(sum(logs[place, label] for place, label in enumerate(path)))
        )
    return {sequence: float(logsumexp(paths)) for sequence, paths in found.items()}


def test_a_wide_beam_is_the_sum_over_all_paths() -> None:
    logits = np.float32(2 * RANDOM.standard_normal((4, 5, 3)))
    lengths = np.array([5, 4, 1, 0])
    absent = np.arange(5)[None] >= lengths[:, None]
    prefixes, sizes, logs = (np.asarray(each) for each in SEARCH(logits, absent, 40))
    for row, length in enumerate(lengths):
        expected = spelled(logits[row, :length])
        there = np.isfinite(logs[row])
        found = {
            tuple(prefixes[row, place, : sizes[row, place]].tolist()): float(logs[row, place])
            for place in np.flatnonzero(there)
        }
        assert len(found) == there.sum() == len(expected)
        assert found == pytest.approx(expected, abs=1e-5)
        assert np.all(np.diff(logs[row][there]) <= 0)
        assert not np.any(prefixes[row] * (np.arange(5)[None] >= sizes[row][:, None]))


def searched(logits: np.ndarray, beam: int) -> dict[tuple[int, ...], float]:
    """The same search of [L, K] with a dictionary of prefixes: log probabilities of those kept."""
    logs = log_softmax(np.float64(logits), axis=-1)
    never = -np.inf
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, never)}  # ends in a blank; not
    for log in logs:
        found: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (blank, other) in kept.items():
            total = np.logaddexp(blank, other)
            for label, more in enumerate(log):
                if not label:
                    changes = [(prefix, 0, total + more)]
                elif prefix and label == prefix[-1]:
                    changes = [(prefix, 1, other + more), ((*prefix, label), 1, blank + more)]
                else:
                    changes = [((*prefix, label), 1, total + more)]
                for key, place, value in changes:
                    pair = list(found.get(key, (never, never)))
                    pair[place] = np.logaddexp(pair[place], value)
                    found[key] = (pair[0], pair[1])
        best = sorted(found, key=lambda key: np.logaddexp(*found[key]), reverse=True)[:beam]
        kept = {key: found[key] for key in best}
    return {key: float(np.logaddexp(*pair)) for key, pair in kept.items()}


@pytest.mark.parametrize("beam", [1, 2, 3, 7])
def test_a_narrow_beam_is_that_of_a_dictionary(beam: int) -> None:
    logits = np.float32(2 * RANDOM.standard_normal((6, 9, 4)))
    prefixes, sizes, logs = map(np.asarray, SEARCH(logits, np.zeros((6, 9), bool), beam))
    for row in range(6):
        found = {
            tuple(prefixes[row, place, : sizes[row, place]].tolist()): float(logs[row, place])
            for place in range(beam)
            if np.isfinite(logs[row, place])
        }
        assert found == pytest.approx(searched(logits[row], beam), abs=1e-4)


def test_a_beam_finds_what_the_likeliest_path_misses() -> None:
    """Of two frames with (blank, a) at (0.6, 0.4): the path of two blanks has 0.36, and a 0.64."""
    logits = np.log(np.array([[[0.6, 0.4], [0.6, 0.4]]], np.float32))
    batch = {"logits": logits, "targets": np.array([[1]]), "mask": np.ones((1, 1), np.float32)}
    batch |= {"lengths": np.array([2]), "inputs": jnp.zeros((1, 2))}
    rates = [
        summary(CTC(classes=2, beam=beam), outcome(CTC(classes=2, beam=beam), train=False, **batch))
        for beam in (0, 2)
    ]
    assert [rate["error_rate"] for rate in rates] == [1, 0]
    _, _, logs = SEARCH(logits, np.zeros((1, 2), bool), 2)
    np.testing.assert_allclose(np.exp(logs), [[0.64, 0.36]], rtol=1e-5)


@given(st.lists(st.text(" ab", max_size=9), min_size=2, max_size=2), st.randoms())
@settings(max_examples=40, deadline=None)
def test_word_errors_are_plain_pythons(texts: list[str], random: Any) -> None:
    heard, said = texts
    given_tokens = RANDOM.integers(1, 4, (1, 12))  # what is not present does not count
    present = np.zeros((1, 12), bool)
    places = sorted(random.sample(range(12), len(heard)))
    given_tokens[0, places] = [1 + " ab".index(letter) for letter in heard]
    present[0, places] = True
    logits = np.float32(99 * np.eye(4)[np.where(present, given_tokens, 0)])
    targets = np.array([[1 + " ab".index(letter) for letter in said.ljust(9)]])
    mask = np.float32(np.arange(9)[None] < len(said))
    words, ends = WORDS(given_tokens, present, 1)
    assert int(ends.sum()) == len(heard.split())
    assert len({*np.asarray(words)[np.asarray(ends)].tolist()}) == len({*heard.split()})
    logits = np.repeat(logits, 2, axis=1)  # a blank after each frame, that all are heard
    logits[:, 1::2] = 99 * np.eye(4)[0]
    batch = {"logits": logits, "targets": targets, "mask": mask, "inputs": jnp.zeros((1, 24))}
    sums = outcome(CTC(classes=4, space=1), train=False, lengths=np.array([24]), **batch)
    numbers: dict[str, int] = {}
    coded = [[numbers.setdefault(word, len(numbers)) for word in text.split()] for text in texts]
    assert int(sums["word_error_rate"].weight) == len(said.split())
    if said.split():
        assert int(sums["word_error_rate"].total) == levenshtein(*coded)


WORDS = jax.jit(words_of, static_argnums=2)


def test_word_errors_are_summed_before_they_are_divided() -> None:
    """Of texts of 3 words with 1 wrong, of 1 word with 1 wrong, and of none."""
    heard = np.array([[2, 1, 3, 1, 2, 0], [2, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]])
    said = np.array([[2, 1, 2, 1, 2], [3, 0, 0, 0, 0], [3, 0, 0, 0, 0]])
    mask = np.float32([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    batch = {"logits": np.float32(99 * np.eye(4)[heard]), "targets": said, "mask": mask}
    batch |= {"lengths": np.full(3, 6), "inputs": jnp.zeros((3, 6))}
    objective = CTC(classes=4, space=1)
    found = summary(objective, outcome(objective, train=False, **batch))
    assert found["word_error_rate"] == 2 / 4 and found["error_rate"] == 2 / 6
    assert found["exact_match"] == 0


def test_a_space_that_is_no_class_is_refused() -> None:
    with pytest.raises(Refused, match="space 4: it must be below classes, 4"):
        validate(CTC(classes=4, space=4))


def test_the_sums_are_the_same_on_a_mesh() -> None:
    heard = frames(rows=8)
    logits = np.float32(RANDOM.standard_normal((8, 6)))
    targets = RANDOM.integers(0, 6, 8)
    classified = {
        "logits": logits,
        "targets": targets,
        "mask": np.float32(np.arange(8) < 7),
        "inputs": logits,
    }
    mesh = Mesh(data=2, fsdp=4).build()
    for objective, batch in (
        (CTC(classes=4, space=1, beam=3), heard),
        (Classification(classes=6, macro=True), classified),
    ):
        expected = outcome(objective, train=False, **batch)
        with activate(mesh):
            ours = outcome(
                objective, train=False, **device_put_batch(jax.tree.map(np.asarray, batch), mesh)
            )
        jax.tree.map(close, ours, expected)
