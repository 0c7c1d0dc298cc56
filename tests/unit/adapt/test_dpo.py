"""Direct preference optimization: the loss and its gradient by hand, and the kept reference."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.config.experiment import Experiment, InitializeFrom
from jaxbig.config.lora import LoRA
from jaxbig.data.preferences import Preferences, ReferenceScores
from jaxbig.data.records.json_lines import JsonLines
from jaxbig.data.tokenize.tokenizers import Bytes
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Refused
from jaxbig.objectives.base import Sums, sums_of
from jaxbig.objectives.dpo import DPO
from jaxbig.program.program import make_program
from jaxbig.train import reference, resume
from jaxbig.train.evaluate import evaluate_run

V = 7
FEW = {"steps": 2, "evaluate_every": 2, "checkpoint_every": 2, "log_every": 1}


class Bigrams(nn.Module):
    """The logits of the next token are a row of a table."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        return self.param("table", nn.initializers.normal(1.0), (V, V))[inputs]


def batch_of_pairs() -> dict[str, np.ndarray]:
    """Three pairs, the last of which is padding."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, V, (2, 4, 5))
    masks = (draw.random((2, 4, 5)) < 0.6).astype(np.float32)
    masks[:, :3, 2] = 1
    masks[:, 3] = 0
    inputs = np.concatenate([np.zeros((4, 1), int), tokens[0, :, :-1]], axis=1)
    return {
        "inputs": inputs,
        "targets": tokens[0],
        "mask": masks[0],
        "rejected": tokens[1],
        "rejected_mask": masks[1],
        "reference": draw.standard_normal((4, 2)).astype(np.float32),
    }


def by_hand(
    table: np.ndarray, batch: dict[str, np.ndarray], beta: float, smoothing: float
) -> tuple[float, float, float, np.ndarray]:
    """Loss, accuracy, margin and the gradient by the table, a token at a time, in float64."""
    losses = []
    margins = []
    gradient = np.zeros_like(table)
    for row in range(3):
        gains = np.zeros(2)
        slopes = np.zeros((2, V, V))
        for side, (name, mask) in enumerate((("targets", "mask"), ("rejected", "rejected_mask"))):
            before = 0
            for token, counts in zip(batch[name][row], batch[mask][row], strict=True):
                p = np.exp(table[before]) / np.exp(table[before]).sum()
                gains[side] += counts * np.log(p[token])
                slopes[side, before] += counts * (np.eye(V)[token] - p)
                before = token
            gains[side] -= batch["reference"][row, side]
        margin = beta * (gains[0] - gains[1])
        sigmoid = 1 / (1 + np.exp(-margin))
        losses.append(-(1 - smoothing) * np.log(sigmoid) - smoothing * np.log(1 - sigmoid))
        margins.append(margin)
        factor = -(1 - smoothing) * (1 - sigmoid) + smoothing * sigmoid
        gradient += factor * beta * (slopes[0] - slopes[1]) / 3
    right = float(np.mean(np.array(margins) > 0))
    return float(np.mean(losses)), right, float(np.mean(margins)), gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_by_hand(smoothing: float) -> None:
    batch: Any = batch_of_pairs()
    table = np.random.default_rng(1).standard_normal((V, V))
    objective = DPO(vocab=V, beta=0.7, label_smoothing=smoothing)

    def loss(table: jax.Array) -> tuple[jax.Array, Sums]:
        sums = nn.apply(
            lambda forward: sums_of(objective, forward, batch, key=jax.random.key(0), train=True),
            Bigrams(),
        )({"params": {"table": table}})
        return sums["loss"].mean(), sums

    gradient, sums = jax.grad(loss, has_aux=True)(jnp.asarray(table, jnp.float32))
    *expected, slope = by_hand(table, batch, 0.7, smoothing)
    found = objective.summarize(sums)
    names = ("loss", "accuracy", "margin")
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-6)
    assert float(sums["loss"].weight) == 3


def experiment(folder: Path, **changes: Any) -> Experiment:
    """A small decoder that learns which of two answers is better."""
    file = folder / "pairs.jsonl"
    lines = [{"prompt": f"{n}", "chosen": f"{n}!", "rejected": f"{n % 7}?"} for n in range(40)]
    if not file.exists():
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain: Any = small("pytext_llama", **FEW)
    fields: dict[str, Any] = {"batch": 8, "length": 32, **changes.pop("data", {})}
    data = Preferences(records=JsonLines(files=(str(file),)), **fields)
    dpo = DPO(vocab=data.vocab, **changes.pop("dpo", {}))
    model = dataclasses.replace(plain.model, depth=1, vocab=data.vocab)
    return plain.replace(model=model, data=data, objective=dpo, mesh=Mesh(data=8), **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    folder = tmp_path_factory.mktemp("dpo")
    return jb.fit(experiment(folder), folder / "run")


def kept(run: jb.Run) -> ReferenceScores:
    found = ReferenceScores.read(run.directory)
    assert found is not None
    return found


def test_reference_is_the_first_state_and_its_margin_is_0(run: jb.Run) -> None:
    program = make_program(experiment(run.directory.parent))
    rows = run.experiment.data.source("train").rows(np.arange(8))
    with program.activate():
        state = program.init()
        sums, _ = program.eval_step(program.merged(state), rows)
        logits: Any = run.experiment.model.apply({"params": state.params}, rows["inputs"])
    nats = jnp.take_along_axis(jax.nn.log_softmax(logits), rows["targets"][..., None], -1)[..., 0]
    expected = jnp.sum(nats * rows["mask"], axis=1)
    np.testing.assert_allclose(kept(run).splits["train"][:8, 0], expected, rtol=1e-4)
    assert float(sums["margin"].mean()) == pytest.approx(0, abs=1e-4)
    assert float(sums["loss"].mean()) == pytest.approx(np.log(2), abs=1e-4)


def test_kept_file_is_used_and_its_loss_is_noticed(
    run: jb.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*arguments: Any) -> None:
        raise AssertionError("the reference is computed again")

    monkeypatch.setattr(reference, "_scores", computed)
    for metrics in (
        jb.evaluate(run.directory),
        evaluate_run(experiment(run.directory.parent), run.directory)["metrics"],
    ):
        assert metrics["loss"] == pytest.approx(run.metrics["eval/loss"], rel=1e-5)
    assert jb.fit(experiment(run.directory.parent), run.directory).step == 2
    file = run.directory / "reference.npz"
    moved = file.rename(file.with_suffix(".kept"))
    try:
        with pytest.raises(Refused, match=r"reference.npz is lost or of other data"):
            evaluate_run(experiment(run.directory.parent), run.directory)
        with pytest.raises(Refused, match=r"reference.npz is lost or of other data"):
            jb.fit(experiment(run.directory.parent).replace(steps=3), run.directory)
    finally:
        moved.rename(file)


@pytest.mark.slow
def test_adapters_in_parts_on_a_mesh_learn_from_another_run(
    run: jb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run.directory.parent
    more = experiment(
        folder,
        dpo={"reference": str(run.directory)},
        data={"batch": 16},
        accumulate=2,
        lora=LoRA(rank=2),
        initialize_from=InitializeFrom(run=str(run.directory)),
    ).replace(mesh=Mesh(data=1, fsdp=8))
    second = jb.fit(more, tmp_path / "second")
    first = next(row for row in second.history if row["split"] == "train")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-3)  # it begins as the reference
    described = json.loads((second.directory / "run.json").read_text())
    digest = json.loads((run.directory / "summary.json").read_text())["state_sha256"]
    assert described["reference"] == {"step": 2, "state_sha256": digest}
    assert kept(second).of["reference"] == described["reference"]
    other = {"reference": {"step": 2, "state_sha256": "0" * 64}}
    monkeypatch.setattr(resume, "reference_identity", lambda experiment: other)
    with pytest.raises(Refused, match=r"holds another run \(reference.state_sha256"):
        jb.fit(more.replace(steps=3), second.directory)


def test_other_data_is_another_run(run: jb.Run) -> None:
    folder = run.directory.parent
    file = folder / "pairs.jsonl"
    before = file.read_text()
    try:
        file.write_text(before.replace('"1!"', '"1!!"'))
        with pytest.raises(Refused, match=r"data_identity"):
            jb.fit(experiment(folder).replace(steps=3), run.directory)
    finally:
        file.write_text(before)


def test_reference_with_another_vocabulary_or_none_is_refused(run: jb.Run, tmp_path: Path) -> None:
    folder = run.directory.parent
    tokens = {"tokenizer": Bytes(specials=("<extra>",))}
    dpo = {"reference": str(run.directory)}
    with pytest.raises(Refused, match=r"--objective.reference .* does not fit: the data has 257"):
        jb.fit(experiment(folder, data=tokens, dpo=dpo), tmp_path / "a")
    with pytest.raises(Refused, match=r"there is no run with a checkpoint: train it first"):
        jb.fit(experiment(folder, dpo={"reference": str(tmp_path)}), tmp_path / "b")


def test_data_without_pairs_is_refused() -> None:
    plain: Any = small("pytext_llama")
    with pytest.raises(Refused, match=r"gives no rejected, .* jb.data.Preferences"):
        make_program(plain.replace(objective=DPO(vocab=plain.data.vocab)))


def test_smoothing_of_a_half_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"label-smoothing 0.5: it must be below 0.5"):
        make_program(experiment(tmp_path, dpo={"label_smoothing": 0.5}))


def test_prediction_is_the_log_probability_of_both_answers(run: jb.Run) -> None:
    [found] = jb.predict(run, [{"prompt": "1", "chosen": "1!", "rejected": "1?"}])
    assert found["chosen"] < 0 and found["rejected"] < 0


def test_steps_that_are_timed_have_a_finite_reference(tmp_path: Path) -> None:
    timed = experiment(tmp_path)
    reference.assume_reference(timed, timed.data.prepare())
    assert not timed.data.source("train").rows(np.arange(8))["reference"].any()
