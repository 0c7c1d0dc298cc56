"""Rows and positions that are not real count in no sum, mean or statistic: the same examples, with
padding added to them, have the same loss, gradient, metrics and batch statistics."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.config.experiment import Experiment
from jaxbig.config.guard import Guard
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.data.tabular import Columns
from jaxbig.data.text import TokenRows
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.models.deltanet import DeltaNet
from jaxbig.models.griffin import Griffin
from jaxbig.models.language_model import Decoder, Encoder, EncoderDecoder
from jaxbig.models.layers.convolution import BatchNorm
from jaxbig.models.layers.mixture_of_experts import LOSSES
from jaxbig.models.mlp import MLP
from jaxbig.models.resnet import ResNet
from jaxbig.models.rnn import RNN, RNNLanguageModel
from jaxbig.models.rnn_seq2seq import RNNEncoderDecoder
from jaxbig.models.speech import Conformer, Jasper
from jaxbig.models.vit import ViT
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.ctc import CTC
from jaxbig.objectives.masked_token import MaskedToken
from jaxbig.objectives.next_token import NextToken
from jaxbig.objectives.regression import Regression
from jaxbig.objectives.seq2seq import Seq2Seq
from jaxbig.optim.optimizers import AdamW
from jaxbig.optim.schedules import Constant
from jaxbig.program.bad_steps import FAULT
from jaxbig.program.gradient import with_losses
from jaxbig.program.program import make_program

ROWS = 3
LENGTH = 5
VOCAB = 11
KEY = jax.random.key(3)
Batch = dict[str, np.ndarray]


class Case(NamedTuple):
    model: nn.Module
    objective: Any
    batch: Batch
    long: tuple[str, ...] = ()
    """The fields whose second axis is of positions, which are padded too."""


def of(shape: tuple[int, ...], most: int | None = None) -> np.ndarray:
    draw = np.random.default_rng(len(shape))
    return (
        draw.normal(2, 3, shape).astype(np.float32)
        if most is None
        else draw.integers(1, most, shape, np.int32)
    )


def texts(*more: str, ends: tuple[int, ...] = (5, 2, 4)) -> Batch:
    """Tokens of rows that end before the row does, as next tokens, with what else is asked for."""
    real = np.arange(LENGTH) < np.array(ends)[:, None]
    tokens = of((ROWS, LENGTH), VOCAB) * real
    batch = {
        "inputs": tokens,
        "targets": np.roll(tokens, -1, 1) * real,
        "mask": real.astype(np.float32),
    }
    segments = real * (1 + (np.arange(LENGTH) > 2))
    side = {"lengths": np.array(ends, np.int32), "segments": segments.astype(np.int32)}
    side["positions"] = (np.arange(LENGTH) * real).astype(np.int32)
    return batch | {name: side[name] for name in more}


def images(**targets: Any) -> Batch:
    found = {"targets": of((ROWS,), 4), "mask": np.ones(ROWS, np.float32), **targets}
    return {"inputs": of((ROWS, 8, 8, 1)), **found}


def sentences() -> Batch:
    return {**texts("lengths"), "targets": of((ROWS,), 4), "mask": np.ones(ROWS, np.float32)}


SHORT: dict[str, Any] = {"vocab": VOCAB, "depth": 1, "width": 8, "heads": 2, "mlp_width": 8}
MIXED = {**SHORT, "experts": 4, "router_z_loss": 0.5, "load_balance_loss": 0.7}
TOKENS = ("inputs", "targets", "mask")
NEXT = NextToken(vocab=VOCAB, z_loss=0.1)
FOUR = Classification(classes=4)
PAIR = Seq2Seq(vocab=VOCAB, start=1, end=2, smoothing=0.1)
HIDDEN = MaskedToken(vocab=VOCAB, mask_token=0, rate=0.5)
HEARD = {
    **texts("lengths", ends=(2, 1, 2)),
    "inputs": of((ROWS, LENGTH, 3)),
    "lengths": np.array([5, 3, 4], np.int32),
}
SPOKEN = {**HEARD, "inputs": of((ROWS, LENGTH, 3, 1))}
FLAT = {"inputs": of((ROWS, 6)), "targets": of((ROWS, 2)), "mask": np.ones(ROWS, np.float32)}
PIXELS = {"targets": of((ROWS, 4, 4), 4), "mask": np.ones((ROWS, 4, 4), np.float32)}


class Pixels(nn.Module):
    """A class for each pixel, through `BatchNorm`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.avg_pool(nn.Dense(4)(BatchNorm(name="norm")(x, train)), (2, 2), (2, 2))


CASES: dict[str, Case] = {
    "classes": Case(MLP(widths=(8,), outputs=4), FOUR, {**FLAT, "targets": of((ROWS,), 4)}),
    "smoothed, weighted": Case(
        MLP(widths=(8,), outputs=4),
        Classification(classes=4, smoothing=0.1, class_weights=(1.0, 2.0, 0.5, 3.0), macro=True),
        {**FLAT, "targets": of((ROWS,), 4)},
    ),
    "many labels": Case(
        MLP(widths=(8,), outputs=4),
        Classification(classes=4, multi_label=True),
        {**FLAT, "targets": of((ROWS, 4), 2)},
    ),
    "numbers": Case(MLP(widths=(8,), outputs=2), Regression(), FLAT),
    "batch statistics": Case(
        ResNet(classes=4, stages=(1,), bottleneck=False, stem="small", width=4), FOUR, images()
    ),
    "batch statistics, pixels": Case(Pixels(), FOUR, images(**PIXELS)),
    "image experts": Case(
        ViT(
            classes=4,
            patch=4,
            depth=1,
            width=8,
            heads=2,
            experts=4,
            load_balance_loss=0.7,
            mlp_width=8,
        ),
        FOUR,
        images(),
    ),
    "decoder": Case(Decoder(**SHORT), NEXT, texts(), TOKENS),
    "experts": Case(Decoder(**MIXED), NEXT, texts(), TOKENS),
    "experts, scanned": Case(Decoder(**MIXED, scan=True, remat="full"), NEXT, texts(), TOKENS),
    "experts, packed": Case(
        Decoder(**MIXED), NEXT, texts("segments", "positions"), (*TOKENS, "segments", "positions")
    ),
    "experts, translation": Case(EncoderDecoder(**MIXED), PAIR, texts("lengths"), TOKENS),
    "experts, translation of whole rows": Case(
        EncoderDecoder(**MIXED), PAIR, texts(), ("targets", "mask")
    ),
    "experts, hidden tokens": Case(Encoder(**MIXED), HIDDEN, texts("lengths")),
    "encoder, first": Case(Encoder(**SHORT, classes=4), FOUR, sentences(), ("inputs",)),
    "encoder, mean": Case(
        Encoder(**SHORT, classes=4, pooling="mean"), FOUR, sentences(), ("inputs",)
    ),
    **{
        f"recurrent, {pooling}": Case(
            RNN(vocab=VOCAB, width=4, classes=4, pooling=pooling, bidirectional=True),
            FOUR,
            sentences(),
            ("inputs",),
        )
        for pooling in ("last", "mean", "attention")
    },
    "recurrent language": Case(RNNLanguageModel(vocab=VOCAB, width=4), NEXT, texts(), TOKENS),
    "linear recurrent": Case(
        Griffin(vocab=VOCAB, depth=1, width=8, heads=2, window=3), NEXT, texts(), TOKENS
    ),
    "delta rule": Case(
        DeltaNet(vocab=VOCAB, depth=1, width=8, heads=2, key_width=2, value_width=4, chunk=3),
        NEXT,
        texts(),
        TOKENS,
    ),
    "recurrent translation": Case(
        RNNEncoderDecoder(vocab=VOCAB, target_vocab=VOCAB, width=4), PAIR, texts("lengths"), TOKENS
    ),
    "heard": Case(RNN(width=4, classes=VOCAB, pooling="none"), CTC(classes=VOCAB), HEARD, TOKENS),
    "heard, convolutions": Case(
        Jasper(classes=VOCAB, width=4, depth=1, kernel=3, convolutions=1),
        CTC(classes=VOCAB, stride=2, beam=2, space=1),
        SPOKEN,
        TOKENS,
    ),
    "heard, Conformer": Case(
        Conformer(
            classes=VOCAB,
            depth=1,
            width=8,
            heads=2,
            kernel=3,
            channels=2,
            convolutions=1,
            dropout=0.0,
        ),
        CTC(classes=VOCAB, stride=2, space=1),
        SPOKEN,
        TOKENS,
    ),
}


def drawn(case: Case) -> Any:
    """Numbers for the model's variables; those that are divided by are 1. To draw them in jax takes
    long to compile."""
    draw = np.random.default_rng(0)
    init = nn.init(lambda f: case.objective(f, case.batch, KEY, False), case.model)
    shapes = nn.meta.unbox(jax.eval_shape(init, {"params": KEY}))
    params = jax.tree.map(
        lambda leaf: draw.normal(0, 0.5, leaf.shape).astype(leaf.dtype), shapes.pop("params")
    )
    return {"params": params, **jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)}


def padded(case: Case) -> Batch:
    """The batch with 2 rows and 4 positions more, of nothing but zeros."""
    batch = {}
    for name, x in case.batch.items():
        wide = [(0, 4 * (name in case.long))] * (x.ndim > 1)
        batch[name] = np.pad(x, [(0, 2), *wide, *[(0, 0)] * (x.ndim - 2)])
    return batch


@functools.partial(jax.jit, static_argnums=(0, 1))
def measured(model: nn.Module, objective: Any, variables: Any, batch: Any) -> Any:
    """The gradient, the sums in training and evaluation, and the batch statistics after."""

    def loss(params: Any) -> Any:
        apply = nn.apply(
            lambda f: objective(f, batch, KEY, True), model, mutable=[LOSSES, "batch_stats"]
        )
        sums, changed = apply({**variables, "params": params})
        sums = with_losses(sums, changed.pop(LOSSES, {}))  # type: ignore[attr-defined]
        return sums["loss"].mean_or_zero(), (sums, changed)

    gradient, (sums, changed) = jax.grad(loss, has_aux=True)(variables["params"])
    return (
        gradient,
        sums,
        nn.apply(lambda f: objective(f, batch, KEY, False), model)(variables),
        changed,
    )


SLOW = (
    "experts, scanned",
    "translation",
    "hidden",
    "first",
    "attention",
    "last",
    "linear",
    "many labels",
    "image experts",
    "experts, packed",
    "encoder, mean",
    "heard",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if any(map(name.count, SLOW)) else name
        for name in CASES
    ],
)
def test_padding_counts_in_no_loss_gradient_metric_or_statistic(name: str) -> None:
    case = CASES[name]
    variables = drawn(case)
    alone, more = (
        measured(case.model, case.objective, variables, rows) for rows in (case.batch, padded(case))
    )
    for found, expected in zip(more[1:3], alone[1:3], strict=True):
        metrics, wanted = (
            case.objective.summarize(jax.device_get(sums)) for sums in (found, expected)
        )
        assert metrics == pytest.approx(wanted, rel=2e-5, abs=1e-6, nan_ok=True)
    for found, expected in ((more[0], alone[0]), (more[3], alone[3])):
        for path, leaf in flatten_with_paths(expected).items():
            np.testing.assert_allclose(
                flatten_with_paths(found)[path], leaf, rtol=2e-4, atol=2e-6, err_msg=path
            )


def left_out(**changes: Any) -> Experiment:
    """An MLP whose data may leave records out."""
    data = Columns(records=Synthetic(texts=()), batch=8, shape=(2,), classes=2, skip_bad_records=1)
    adam = AdamW(learning_rate=Constant(1e-2), weight_decay=0.1)
    model = MLP(widths=(4,), outputs=2)
    objective = Classification(classes=2)
    parts: Any = {
        "model": model,
        "objective": objective,
        "data": data,
        "optimizer": adam,
        "mesh": Mesh(data=1),
    }
    return Experiment(**parts, steps=4, evaluate_every=4, checkpoint_every=4, **changes)


@pytest.mark.parametrize(
    "changes", [{"guard": Guard(spike_threshold=3.0, window=4)}, {"reproducible": 8}], ids=str
)
def test_a_batch_of_left_out_records_changes_nothing_but_the_number_of_steps(changes: Any) -> None:
    program = make_program(left_out(**changes), jax.devices()[:1])
    batch = {name: np.ones(each.shape, each.dtype) for name, each in program.batch.items()}
    nothing = {name: np.zeros_like(each) for name, each in batch.items()}
    with program.activate():
        first, _ = program.train_step(
            program.init(), device_put_batch(batch, program.mesh)
        )  # so that there is momentum
        before = {path: np.asarray(leaf) for path, leaf in flatten_with_paths(first).items()}
        after, metrics = program.train_step(first, device_put_batch(nothing, program.mesh))
    assert int(after.step) == before.pop("step") + 1 and int(metrics[FAULT]) == 0
    assert np.isnan(metrics["loss"]) and np.isnan(
        metrics["accuracy"]
    )  # a mean over nothing is no number
    for path, leaf in before.items():
        np.testing.assert_array_equal(flatten_with_paths(after)[path], leaf, err_msg=path)


def test_only_data_that_may_leave_records_out_looks_for_rows_that_are_not_real() -> None:
    data = left_out().data
    assert (
        data.may_leave_out() and not dataclasses.replace(data, skip_bad_records=0).may_leave_out()
    )  # type: ignore[call-arg]
    assert not small("digits_resnet").data.may_leave_out()


def test_the_end_of_a_text_is_not_to_be_found_out() -> None:
    data = TokenRows(records=Synthetic(texts=("text",)), batch=2, length=6)
    short, cut = (data.read({"text": text}) for text in (b"abc", b"abcdefgh"))
    assert short["mask"].tolist() == [1, 1, 1, 0, 0, 0] and short["lengths"] == 4
    assert cut["mask"].tolist() == [1] * 6 and cut["lengths"] == 6  # its end was cut off
    assert data.read({"text": b""})["mask"].sum() == 0
