"""The guard: a bad step stops the run, is skipped, or is gone back on, and is never saved."""

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from support.compiling import new_emitters
from support.experiments import small

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.config.experiment import Experiment
from jaxbig.config.guard import Guard
from jaxbig.config.precision import Precision
from jaxbig.data.builtin.digits import Digits
from jaxbig.data.core.dataset import Rows, Source
from jaxbig.data.pipeline.sampler import train_indices
from jaxbig.errors import Failed, Refused
from jaxbig.models.convnet import ConvNet, Dense
from jaxbig.program.bad_steps import GRADIENT, LOSS, SPIKE, make_bad_step_check, track_losses
from jaxbig.program.mixed_precision import with_mixed_precision
from jaxbig.program.state import TrainState
from jaxbig.tracking.console import Screen
from jaxbig.tracking.metrics_writer import read_metrics
from jaxbig.train.bad_step_policy import LEFT_OUT, BadStepError, leave_out, left_out
from jaxbig.train.evaluate import evaluate_run
from jaxbig.train.trainer import fit


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles an equal program once, with the emitters of a run.

    With them a skipped step has the bits of one that was never made.
    """
    for folder, seconds in ((str(tmp_path_factory.mktemp("compiled")), 0.0), (None, 1.0)):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        reset_cache()
        if folder:
            with new_emitters():
                yield


class Planting:
    """The digits, but for the batches of some steps, whose pixels are times something."""

    def __init__(self, source: Source, batch: int, planted: dict[int, str]):
        self.source = source
        self.planted = {
            train_indices(source, step - 1, seed=0, batch=batch).tobytes(): by
            for step, by in planted.items()
        }

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices: np.ndarray) -> Rows:
        rows = self.source.rows(indices)
        by = float(self.planted.get(indices.tobytes(), 1))
        return {**rows, "inputs": (rows["inputs"] * np.float32(by)).astype(np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planted(Digits):
    """The digits with what is planted: pairs of a step and what its pixels are multiplied by."""

    planted: tuple[tuple[int, str], ...] = ()

    def source(self, split: str) -> Source:
        source = super().source(split)
        return source if split == "eval" else Planting(source, self.batch, dict(self.planted))


def tiny(
    *planted: tuple[int, float], policy: str = "stop", steps: int = 20, **guard: Any
) -> Experiment:
    model = ConvNet(layers=(Dense(16),), classes=10)
    changes = {
        "log_every": 1,
        "evaluate_every": 20,
        "checkpoint_every": 5,
        "keep_last": 9,
        "steps": steps,
    }
    parent = small("digits_convnet", model=model, **changes)
    data = Planted(batch=16, planted=tuple((step, str(by)) for step, by in planted))
    policies = Guard(policy=policy, **guard)  # type: ignore[arg-type]
    return dataclasses.replace(parent, data=data, guard=policies)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def saved(folder: Path) -> list[int]:
    return CheckpointManager(folder / "checkpoints").steps()


@pytest.fixture(scope="module")
def without_7(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run whose batches are all good, but for whose step 7 is left out."""
    folder = tmp_path_factory.mktemp("without")
    (folder / LEFT_OUT).write_text('[{"step": 7, "why": "a person said so"}]')
    return fit(tiny(), folder, Screen())["state_sha256"]


NAN = float("nan")
HUGE = 1e25


@pytest.mark.parametrize(
    ("by", "why"),
    [
        (NAN, "the loss is not finite"),
        (HUGE, "the gradient is not finite, first that of head/kernel"),
    ],
)
def test_a_bad_step_stops_the_run_is_named_and_is_never_saved(
    by: float, why: str, tmp_path: Path
) -> None:
    for _ in range(2):  # the same command again ends at the same step
        with pytest.raises(
            Failed, match=f"^step 7: {why}; .*--step 7 .*--guard.policy skip"
        ) as failed:
            fit(tiny((7, by)), tmp_path, Screen())
        assert not isinstance(failed.value, BadStepError) and saved(tmp_path) == [5]
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_bad_step_that_is_to_be_saved_is_noticed_before(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"^step 5: "):
        fit(tiny((5, NAN)), tmp_path, Screen())
    assert saved(tmp_path) == []


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("by", [NAN, HUGE])
def test_skipped_or_rolled_back_the_run_ends_as_if_the_batch_had_never_been(
    policy: str, by: float, without_7: str, tmp_path: Path
) -> None:
    summary = fit(tiny((7, by), policy=policy), tmp_path, Screen())
    assert summary["state_sha256"] == without_7 and summary["step"] == 20
    assert left_out(tmp_path) == ([7] if policy == "rollback" else [])
    assert (
        fit(tiny((7, by)), tmp_path, Screen())["state_sha256"] == without_7
    )  # the guard may change: it is done


def test_the_rate_that_is_reported_is_the_one_that_the_optimizer_took(tmp_path: Path) -> None:
    fit(tiny((7, NAN), policy="skip", steps=10), tmp_path / "skipped", Screen())
    fit(tiny(steps=10), tmp_path / "whole", Screen())
    rates = [
        [line["learning_rate"] for line in read_metrics(tmp_path / name)[:10]]
        for name in ("skipped", "whole")
    ]
    assert rates[0][:7] == rates[1][:7] and rates[0][7:] == rates[1][6:9]


def test_what_a_rollback_left_out_stays_so_in_a_resume_and_for_another_policy(
    without_7: str, tmp_path: Path
) -> None:
    class Interrupting(Screen):
        def train(self, step: int, values: dict[str, float]) -> None:
            if step == 8:
                signal.raise_signal(signal.SIGTERM)

    stopped = fit(tiny((7, NAN), policy="rollback"), tmp_path, Interrupting())
    assert stopped["interrupted"] and left_out(tmp_path) == [7] and stopped["step"] < 20
    assert fit(tiny((7, NAN), policy="stop"), tmp_path, Screen())["state_sha256"] == without_7
    steps = [line["step"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert steps == [step for step in range(1, 21) if step != 7]


def test_a_rollback_before_anything_was_saved_starts_again(tmp_path: Path) -> None:
    fit(tiny((2, NAN), (3, NAN), policy="rollback", steps=6), tmp_path, Screen())
    assert left_out(tmp_path) == [2, 3]


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_that_many_bad_steps_in_a_row_end_the_run(policy: str, tmp_path: Path) -> None:
    bad = [(step, NAN) for step in (6, 7, 8)]
    fit(tiny(*bad, policy=policy, max_skips=3), tmp_path / "three", Screen())
    with pytest.raises(
        Failed, match=r"^step 8: .*as in 2 steps before it in a row .*--guard.max-skips"
    ):
        fit(tiny(*bad, policy=policy, max_skips=2), tmp_path / "two", Screen())
    assert saved(tmp_path / "two") == [5]


def test_an_update_that_leaves_the_finite_numbers_is_not_saved(tmp_path: Path) -> None:
    good = tiny(steps=5)
    schedule: Any = good.optimizer.learning_rate
    rate = dataclasses.replace(schedule, peak=3e38, warmup=1)
    optimizer = dataclasses.replace(good.optimizer, learning_rate=rate)
    with pytest.raises(Failed, match=r"^step \d: .*not finite"):
        fit(dataclasses.replace(good, optimizer=optimizer, checkpoint_every=1), tmp_path, Screen())
    for step in saved(tmp_path):
        kept = CheckpointManager(tmp_path / "checkpoints").restore_parameters()
        assert kept and all(
            np.isfinite(leaf).all() for leaf in flatten_with_paths(kept.state).values()
        ), step


# -- spikes


def test_a_jump_is_that_many_deviations_above_the_mean_of_the_good_losses_before() -> None:
    """Against NumPy, over a walk with jumps."""
    guard = Guard(spike_threshold=3.0, window=8)
    rng = np.random.default_rng(0)
    series = (rng.normal(1, 0.1, 60) + (rng.random(60) < 0.15) * rng.random(60)).astype(np.float32)
    optimizer = track_losses(guard, optax.sgd(0.1))
    params = {"w": jnp.ones(3)}
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params))
    step = jax.jit(
        lambda state, loss: make_bad_step_check(guard, False)(state, state, loss, params)
    )
    faults = []
    expected = []
    good = []
    for loss in series:
        state, fault = step(state, loss)
        last = np.array(good[-8:], np.float32)
        expected.append(SPIKE if len(last) == 8 and loss - last.mean() > 3 * last.std() else 0)
        good += [] if expected[-1] else [loss]
        faults.append(int(fault))
    assert faults == expected and 3 < sum(map(bool, faults)) < 20


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_loss_that_jumps_is_a_bad_step(policy: str, tmp_path: Path) -> None:
    spiked = tiny((13, -1e3), policy=policy, spike_threshold=8.0, window=10)
    if policy == "stop":
        with pytest.raises(
            Failed, match=r"^step 13: the loss is 8 standard deviations or more above the last 10"
        ):
            fit(spiked, tmp_path, Screen())
        assert saved(tmp_path) == [5, 10]
        return
    (other := tmp_path / "other").mkdir()
    (other / LEFT_OUT).write_text('[{"step": 13}]')
    digest = fit(tiny(spike_threshold=8.0, window=10), other, Screen())["state_sha256"]
    assert fit(spiked, tmp_path / "run", Screen())["state_sha256"] == digest


@pytest.mark.slow
def test_looking_for_spikes_may_begin_change_and_end_within_a_run(tmp_path: Path) -> None:
    alone = fit(tiny(), tmp_path / "alone", Screen())["state_sha256"]
    fit(tiny(), tmp_path / "run", Screen())
    for looking in (
        {"spike_threshold": 9.0, "window": 3},
        {"spike_threshold": 9.0, "window": 4},
        {},
    ):
        for checkpoint in saved(tmp_path / "run")[-1:]:
            (tmp_path / "run" / "checkpoints" / str(checkpoint)).rename(
                tmp_path / f"{len(looking)}-{checkpoint}-{looking}"
            )
        summary = fit(tiny(**looking), tmp_path / "run", Screen())
    assert summary["state_sha256"] == alone
    shapes = json.loads(
        (tmp_path / "run/checkpoints/20/jaxbig.json").read_text().rsplit("\n", 2)[0]
    )["shapes"]
    assert not [path for path in shapes if "losses" in path]


def test_a_run_is_evaluated_whatever_its_guard_looks_for(tmp_path: Path) -> None:
    summary = fit(tiny(spike_threshold=9.0), tmp_path, Screen())
    assert evaluate_run(tiny(), tmp_path)["metrics"]["loss"] == summary["metrics"]["eval/loss"]


# -- the numbers in the step


@pytest.mark.parametrize(
    ("loss", "leaves", "scaled", "fault"),
    [
        (1.0, (1.0, 1.0, 1.0), False, 0),
        (NAN, (1.0, 1.0, 1.0), False, LOSS),
        (float("inf"), (NAN, 1.0, 1.0), False, LOSS),
        (1.0, (1.0, NAN, 1.0), False, GRADIENT + 1),
        (1.0, (1.0, -float("inf"), NAN), False, GRADIENT + 1),
        (1.0, (1.0, 1.0, NAN), False, GRADIENT + 2),
        (1.0, (1.0, 1.0, NAN), True, 0),  # the loss's scale is too great, and is lowered
        (NAN, (1.0, 1.0, NAN), True, LOSS),
    ],
)
def test_the_first_bad_leaf_in_path_order_is_reported(
    loss: float, leaves: tuple[float, ...], scaled: bool, fault: int
) -> None:
    gradient = {
        "b": {"kernel": jnp.full((2, 2), leaves[1])},
        "a": jnp.full(2, leaves[0]),
        "c": jnp.float32(leaves[2]),
    }
    state = TrainState(jnp.int32(0), gradient, {}, ())
    _, reported = jax.jit(make_bad_step_check(Guard(), scaled))(
        state, state, jnp.float32(loss), gradient
    )
    assert int(reported) == fault


def test_a_skipped_step_keeps_everything_but_its_number() -> None:
    optimizer = with_mixed_precision(
        Precision(loss_scale=8.0),
        track_losses(Guard(spike_threshold=3.0, window=2), optax.sgd(0.1)),
    )
    params = {"w": jnp.ones(3)}
    before = TrainState(jnp.int32(4), params, {"carry": jnp.zeros(2)}, optimizer.init(params))
    after = TrainState(
        jnp.int32(5),
        {"w": jnp.zeros(3)},
        {"carry": jnp.ones(2)},
        optimizer.init({"w": jnp.zeros(3)}),
    )
    watch = make_bad_step_check(Guard(policy="skip", spike_threshold=3.0, window=2), False)
    kept, _ = watch(before, after, jnp.float32(NAN), params)
    taken, _ = watch(before, after, jnp.float32(1), params)
    assert int(kept.step) == int(taken.step) == 5
    for name in ("params", "variables", "opt_state"):
        same = jax.tree.map(np.array_equal, getattr(kept, name), getattr(before, name))
        assert all(jax.tree.leaves(same)), name
    assert not taken.params["w"].any() and taken.opt_state.optimizer.losses.tolist() == [np.inf, 1]


@pytest.mark.parametrize("text", ["{", '{"step": 1}', "[1]", '[{"step": "x"}]'])
def test_a_list_of_left_out_steps_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / LEFT_OUT).write_text(text)
    with pytest.raises(Refused, match=LEFT_OUT):
        left_out(tmp_path)


def test_the_list_grows_by_a_step_at_a_time_and_has_an_end(tmp_path: Path) -> None:
    for step in (3, 9, 4):
        leave_out(tmp_path, BadStepError(step, "bad"), Guard(max_skips=2))
    assert left_out(tmp_path) == [3, 4, 9]
    with pytest.raises(Failed, match="2 steps before it in a row"):
        leave_out(tmp_path, BadStepError(5, "bad"), Guard(max_skips=2))
    with pytest.raises(Failed):
        leave_out(tmp_path, BadStepError(9, "bad"), Guard(max_skips=2))


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(Refused, match="stop, skip, rollback"):
        tiny(policy="pray").check()
