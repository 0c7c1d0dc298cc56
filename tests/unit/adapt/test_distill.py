"""Distillation: the loss by hand, and a teacher that is no part of the run's state."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiments import small

import jaxbig as jb
from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint.manager import Restored
from jaxbig.config.experiment import Experiment
from jaxbig.config.lora import LoRA
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.models.convnet import ConvNet, Dense
from jaxbig.objectives.classification import Classification
from jaxbig.objectives.distill import Distill, divergence
from jaxbig.program.program import make_program
from jaxbig.tools.shrink import random_batch
from jaxbig.train import resume
from jaxbig.train import teacher as teachers
from jaxbig.train.teacher import restore_teacher, teacher_identity

pytestmark = pytest.mark.usefixtures("shared_programs")
FEW = {"steps": 2, "evaluate_every": 2, "checkpoint_every": 2, "evaluate_batches": 1}


def student(teacher: Path, **changes: Any) -> Experiment:
    """A layer that learns from a run."""
    plain = small("digits_convnet", mesh=Mesh(data=1, fsdp=8), **FEW)
    fields = {"temperature": 3.0, "hard_weight": 0.25} | changes.pop("distill", {})
    objective = Distill(plain.objective, str(teacher), **fields)
    return plain.replace(
        model=ConvNet(classes=10, layers=(Dense(16),)), objective=objective, **changes
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual net, with batch statistics, adapters and an average."""
    folder = tmp_path_factory.mktemp("teacher")
    experiment = small("digits_resnet", mesh=Mesh(data=1, fsdp=8), **FEW)
    jb.fit(experiment.replace(lora=LoRA(rank=1, pattern="block", trained="^head"), ema=0.5), folder)
    return folder


@pytest.fixture(scope="module")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    return jb.fit(student(teacher), tmp_path_factory.mktemp("student"))


def test_divergence_is_that_of_the_two_softmaxes_at_the_temperature() -> None:
    draw = np.random.default_rng(0)
    ours = draw.standard_normal((3, 5))
    theirs = draw.standard_normal((3, 5))

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    p = softmax(theirs / 2)
    expected = 4 * np.sum(p * np.log(p / softmax(ours / 2)), axis=-1)
    found = divergence(jnp.array(ours), jnp.array(theirs), 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"reproducible": 8}])
def test_loss_of_a_step_is_the_weighted_sum_however_it_is_computed(
    teacher: Path, changes: dict[str, int]
) -> None:
    mesh = Mesh(data=8) if "reproducible" in changes else Mesh(data=1, fsdp=8)
    experiment = student(teacher, mesh=mesh, **changes)
    program = make_program(experiment)
    host = random_batch(experiment)
    with program.activate():
        variables = restore_teacher(experiment, program.teacher, program.mesh)
        state = program.init()
        logits = experiment.model.apply({"params": state.params}, host["inputs"])
        batch = {**device_put_batch(host, program.mesh), "teacher": variables}
        _, metrics = program.train_step(state, batch)
    restored = jb.restore(teacher)
    theirs = restored.experiment.model.apply(restored.variables, host["inputs"])
    soft = float(divergence(jnp.asarray(logits), jnp.asarray(theirs), 3.0).mean())
    hard = -jnp.take_along_axis(jax.nn.log_softmax(logits), host["targets"][:, None], 1).mean()
    assert float(metrics["distillation"]) == pytest.approx(soft, rel=1e-4)
    assert float(metrics["cross_entropy"]) == pytest.approx(float(hard), rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(0.25 * float(hard) + 0.75 * soft, rel=1e-4)


@pytest.mark.slow
def test_teacher_is_in_the_fingerprint_and_not_in_the_state(run: jb.Run, teacher: Path) -> None:
    described = json.loads((run.directory / "run.json").read_text())
    summary = json.loads((teacher / "summary.json").read_text())
    assert described["teacher"] == {"step": 2, "state_sha256": summary["state_sha256"]}
    names = flatten_with_paths(run.state)
    assert not [name for name in names if "teacher" in name or "block_" in name]


@pytest.mark.slow
def test_run_does_not_resume_with_another_teacher(
    run: jb.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"teacher": {"step": 2, "state_sha256": "0" * 64}}
    monkeypatch.setattr(resume, "teacher_identity", lambda experiment: other)
    with pytest.raises(Refused, match=r"holds another run \(teacher.state_sha256"):
        jb.fit(run.experiment.replace(steps=3), run.directory)


@pytest.mark.slow
def test_evaluation_is_that_of_the_objective_and_needs_no_teacher(
    run: jb.Run, teacher: Path
) -> None:
    moved = teacher.rename(teacher.with_name("kept"))
    try:
        metrics = jb.evaluate(run.directory)
        assert metrics["loss"] == pytest.approx(run.metrics["eval/loss"], rel=1e-6)
        assert "distillation" not in metrics and run.experiment.objective.criterion == "accuracy"
        with pytest.raises(Refused, match=r"there is no run with a checkpoint: train it first, or"):
            jb.fit(run.experiment.replace(steps=3), run.directory)
    finally:
        moved.rename(teacher)


@pytest.mark.slow
def test_prediction_is_that_of_the_objective(run: jb.Run) -> None:
    [row] = jb.predict(run, {"image": np.zeros((8, 8))}, top=2)
    assert {"class", "probability", "top"} <= set(row) and len(row["top"]) == 2


@pytest.mark.slow
def test_teacher_with_other_classes_is_refused_before_anything_is_compiled(teacher: Path) -> None:
    experiment = student(teacher)
    objective = Distill(Classification(classes=12), str(teacher))
    other = experiment.replace(objective=objective, **{"model.classes": 12})
    with pytest.raises(Refused, match=r"--objective.teacher .* 10 logits for 12 classes"):
        make_program(other)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", 0.0, "--objective.temperature 0.0: it must be above 0"),
        ("hard_weight", 1.5, "--objective.hard-weight 1.5: it must be 0 to 1"),
    ],
)
def test_number_out_of_range_is_refused(field: str, value: float, words: str) -> None:
    with pytest.raises(Refused, match=words):
        make_program(student(Path("runs/none"), distill={field: value}))


def test_teacher_named_as_an_experiment_is_refused_with_how_to_train_it(tmp_path: Path) -> None:
    folder = tmp_path / "digits_convnet"
    with pytest.raises(Refused, match=r"train it first \(`jaxbig train digits_convnet`\), or"):
        teacher_identity(student(folder))


def test_checkpoint_that_is_not_the_best_is_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    best = {"step": 4, "state_sha256": "a"}
    monkeypatch.setattr(teachers, "best_checkpoint", lambda folder: best)
    teachers.check_is_best(Restored(4, {}, "a"), "runs/x", "--objective.teacher")
    for other in (Restored(2, {}, "b"), Restored(4, {}, "b")):
        with pytest.raises(Refused, match=r"runs/x: its best checkpoint, of step 4, is corrupt"):
            teachers.check_is_best(other, "runs/x", "--objective.teacher")
