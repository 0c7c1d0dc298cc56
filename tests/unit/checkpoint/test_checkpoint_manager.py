"""Checkpoints are restored bit for bit; a corrupt one is named, and the one before is used."""

import errno
import itertools
import logging
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint import manager
from jaxbig.checkpoint.digest import digests
from jaxbig.checkpoint.manager import CheckpointManager
from jaxbig.errors import Failed, Refused
from jaxbig.program.state import TrainState


def make_state(step: int, devices: int = 8) -> TrainState:
    """A state that differs from step to step, with every kind of leaf.

    It is sharded over the first `devices` devices.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("fsdp",))

    def put(value: Any, dtype: Any, *axes: str) -> jax.Array:
        return jax.device_put(jnp.asarray(value, dtype), NamedSharding(mesh, PartitionSpec(*axes)))

    kernel = np.random.default_rng(step).normal(size=(16, 4))
    kernel[0] = np.nan, np.inf, -0.0, 1e-42
    return TrainState(
        step=put(step, jnp.int32),
        params={
            "kernel": put(kernel, jnp.float32, "fsdp"),
            "scale": put(kernel[1:4] * 1e3, jnp.bfloat16),
        },
        variables={
            "seen": put(kernel > 0, bool, "fsdp"),
            "half": put(kernel, jnp.bfloat16, "fsdp"),
        },
        opt_state=(put(range(step, step + 8), jnp.int32, "fsdp"), put(step, jnp.uint8)),
    )


def abstract(state: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def bits(state: Any) -> dict[str, tuple[str, bytes]]:
    return {
        path: (str(leaf.dtype), np.array(leaf).tobytes())
        for path, leaf in flatten_with_paths(state).items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def save(folder: Path, *steps: int, keep_last: int = 2) -> CheckpointManager:
    checkpoints = CheckpointManager(folder, keep_last=keep_last)
    for step in steps:
        checkpoints.save(step, make_state(step), {"loss": 1 / step})
    checkpoints.wait()
    return checkpoints


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of steps 10 and 20, saved once for this file."""
    return save(tmp_path_factory.mktemp("template") / "checkpoints", 10, 20).folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "checkpoints"))


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets caplog see what a Screen would have kept to itself."""
    monkeypatch.setattr(logging.getLogger("jaxbig"), "propagate", True)


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 8), (8, 1), (8, 2), (1, 8), (2, 8)])
def test_a_state_comes_back_bit_for_bit_on_any_number_of_devices(
    tmp_path: Path, saved_on: int, restored_on: int
) -> None:
    checkpoints = CheckpointManager(tmp_path)
    state = make_state(7, saved_on)
    checkpoints.save(7, state, {"loss": 0.5})
    checkpoints.wait()
    wanted = abstract(make_state(0, restored_on))
    restored = checkpoints.restore(wanted)
    assert restored is not None
    assert (restored.step, restored.state_sha256) == (7, digests(state)[1])
    assert checkpoints.state_sha256 == restored.state_sha256
    assert bits(restored.state) == bits(state)
    for path, asked in flatten_with_paths(wanted).items():
        assert flatten_with_paths(restored.state)[path].sharding.is_equivalent_to(
            asked.sharding, len(asked.shape)
        ), path


def test_what_is_saved_is_the_state_at_the_save_though_its_buffers_are_given_away_at_once(
    tmp_path: Path,
) -> None:
    train = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    sharding = make_state(0).params["kernel"].sharding
    state = {"kernel": jax.device_put(jnp.zeros((1024, 1024)), sharding), "step": jnp.int32(0)}
    checkpoints = CheckpointManager(tmp_path)
    given_away = 0
    for step in range(1, 101):
        before = state
        state = train(state)
        given_away += before["kernel"].is_deleted()
        if step == 5:
            checkpoints.save(step, state, {})
    checkpoints.wait()
    assert given_away > 90
    restored = checkpoints.restore(abstract(state))
    assert restored is not None and restored.state["step"] == 5
    assert np.all(np.asarray(restored.state["kernel"]) == 5)


def flipped(place: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        at = round(place * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flipped(0), id="first byte flipped"),
        pytest.param(flipped(0.5), id="middle byte flipped"),
        pytest.param(flipped(1), id="last byte flipped"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut in half"),
        pytest.param(lambda data: b"", id="emptied"),
        pytest.param(lambda data: data + b"\n", id="longer"),
        pytest.param(None, id="missing"),
    ],
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes] | None
) -> None:
    files = contents(folder / "20")
    assert len(files) > 5
    for name, data in files.items():
        file = folder / "20" / name
        if damage is None:
            file.unlink()
        elif not data and name != "jaxbig.json" and damage(b"x") != b"x\n":
            continue  # an empty file has nothing to flip or cut
        else:
            file.write_bytes(damage(data))
        caplog.clear()
        restored = CheckpointManager(folder).restore(abstract(make_state(0)))
        assert restored is not None and restored.step == 10, name
        assert bits(restored.state) == bits(make_state(10)), name
        assert (
            len(caplog.messages) == 1
            and str(folder / "20") in caplog.messages[0]
            and name in caplog.messages[0]
        )
        assert "\n" not in caplog.messages[0]
        file.write_bytes(data)
    caplog.clear()
    fixed = CheckpointManager(folder).restore(abstract(make_state(0)))
    assert fixed is not None and fixed.step == 20 and not caplog.messages


def test_a_flipped_byte_of_arrays_is_found_without_a_digest_of_the_file(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file that is too large for one: it is whole bit for bit, or it is not used."""
    monkeypatch.setattr(manager, "SMALL", -1)
    checkpoints = save(folder, 30)
    expected = {30: bits(make_state(30)), 20: bits(make_state(20))}
    named = 0
    for name, data in contents(folder / "30").items():
        if name == "jaxbig.json":
            continue
        for place in (0.2, 0.5, 0.8) if data else ():
            (folder / "30" / name).write_bytes(flipped(place)(data))
            caplog.clear()
            restored = checkpoints.restore(abstract(make_state(0)))
            assert bits(restored.state) == expected[restored.step], (name, place)
            assert (restored.step == 20) == ("trying the one before" in caplog.text), (name, place)
            named += "has changed in its" in caplog.text
        (folder / "30" / name).write_bytes(data)
    assert named


@pytest.mark.parametrize("at", ["reading", "digests"])
@pytest.mark.parametrize("here", [True, False], ids=["this process", "another process"])
def test_a_checkpoint_that_one_process_alone_finds_broken_is_passed_over_by_all(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: str,
    here: bool,
) -> None:
    """Two processes, of which this is process 0.

    Whatever it finds itself, it asks the other as often.
    """
    round_of_fault = ("reading", "digests").index(at)
    asked = []

    def gather(problem: str) -> list[str]:
        asked.append(problem)
        return [problem, "" if here or len(asked) != round_of_fault + 1 else "is broken there"]

    monkeypatch.setattr(manager, "gather", gather)
    load = manager.ocp.load
    hash_chunks = manager.hash_chunks
    calls = itertools.count()

    def unread(path: str, *rest: Any) -> Any:
        return load(path if next(calls) else "nowhere", *rest)

    def others(*arguments: Any, **options: Any) -> Any:
        found = hash_chunks(*arguments, **options)
        wrong = {path: dict.fromkeys(hashes, b"") for path, hashes in found.items()}
        return found if next(calls) else wrong

    if here:
        monkeypatch.setattr(
            *(manager.ocp, "load", unread) if at == "reading" else (manager, "hash_chunks", others)
        )
    restored = CheckpointManager(folder).restore(abstract(make_state(0)))
    words = (
        {"reading": "cannot be read", "digests": "has changed in its leaf"}[at]
        if here
        else "is broken there"
    )
    assert restored.step == 10 and len(caplog.messages) == 1 and words in caplog.text
    assert len(asked) == round_of_fault + 1 + 2  # and both of the older one, which is whole


def empty_folder(folder: Path) -> None:
    (folder / "999").mkdir()


def link(folder: Path) -> None:
    (folder / "999").symlink_to((folder / "20").rename(folder.parent / "elsewhere"))
    shutil.copytree(folder.parent / "elsewhere", folder / "20")


def dangling_link(folder: Path) -> None:
    (folder / "999").symlink_to(folder / "nothing")


def plain_file(folder: Path) -> None:
    (folder / "999").write_text("notes")


def copy_under_another_step(folder: Path) -> None:
    shutil.copytree(folder / "10", folder / "999")


@pytest.mark.parametrize(
    "put", [empty_folder, link, dangling_link, plain_file, copy_under_another_step]
)
def test_what_only_has_the_name_of_a_checkpoint_is_named_passed_over_and_set_aside(
    folder: Path, caplog: pytest.LogCaptureFixture, put: Callable[[Path], None]
) -> None:
    put(folder)
    before = contents(folder.parent)
    checkpoints = CheckpointManager(folder)
    restored = checkpoints.restore(abstract(make_state(0)))
    assert restored is not None and restored.step == 20
    assert len(caplog.messages) == 1 and str(folder / "999") in caplog.messages[0]
    assert contents(folder.parent) == before
    checkpoints.set_aside(restored.step)
    assert checkpoints.steps() == [10, 20]
    (moved,) = (folder.parent / "broken").iterdir()
    assert str(moved) in caplog.messages[1]


@pytest.mark.parametrize("name", ["0999", "999.old", "999-copy"])
def test_a_name_that_no_save_gives_is_left_alone(folder: Path, name: str) -> None:
    shutil.copytree(folder / "10", folder / name)
    checkpoints = CheckpointManager(folder)
    restored = checkpoints.restore(abstract(make_state(0)))
    assert restored is not None and restored.step == 20
    checkpoints.set_aside(restored.step)
    assert (folder / name).is_dir()


def test_when_all_are_broken_it_fails_naming_each_and_deletes_nothing(folder: Path) -> None:
    (folder / "10" / "jaxbig.json").unlink()
    next((folder / "20" / "state" / "d").iterdir()).write_bytes(b"")
    before = contents(folder)
    said = r"none of 2 checkpoints .*/20 has 0 bytes .*/10 misses its file jaxbig.json"
    with pytest.raises(Failed, match=said) as error:
        CheckpointManager(folder).restore(abstract(make_state(0)))
    assert "\n" not in str(error.value)
    assert contents(folder) == before


def test_an_empty_or_absent_folder_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        assert CheckpointManager(tmp_path / name).restore(abstract(make_state(0))) is None


def changed(**params: Any) -> Any:
    asked = abstract(make_state(0))
    return asked.replace(
        params={name: leaf for name, leaf in {**asked.params, **params}.items() if leaf is not None}
    )


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        (jax.ShapeDtypeStruct((16, 4), jnp.bfloat16), "float32.*bfloat16"),
        (jax.ShapeDtypeStruct((16, 4), jnp.int32), "float32.*int32"),
        (jax.ShapeDtypeStruct((4, 16), jnp.float32), r"\[16, 4\].*\[4, 16\]"),
        (
            jax.ShapeDtypeStruct((2**50, 4), jnp.float32),
            rf"\[16, 4\].*{2**50}",
        ),  # could not be loaded
        (None, r"float32.*nothing"),
    ],
)
def test_a_leaf_of_another_dtype_or_shape_is_refused_by_name_before_it_is_loaded(
    folder: Path, leaf: Any, said: str
) -> None:
    with pytest.raises(Refused, match=f"params/kernel .*{said}"):
        CheckpointManager(folder).restore(changed(kernel=leaf))


def test_a_leaf_that_was_never_saved_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(Refused, match=r"params/new as nothing.*float32"):
        CheckpointManager(folder).restore(changed(new=jax.ShapeDtypeStruct((2,), jnp.float32)))


def test_the_parameters_alone_come_back_whatever_the_model(folder: Path) -> None:
    (folder / "20" / "jaxbig.json").write_text("{}")
    weights = CheckpointManager(folder).restore_parameters()
    assert weights is not None and bits(weights.state) == bits({"params": make_state(10).params})
    assert CheckpointManager(folder / "absent").restore_parameters() is None


@pytest.mark.parametrize(
    ("losses", "kept", "stay"),
    [
        ([5.0, 1.0, 3.0, 2.0, 4.0], {"keep_last": 2, "keep_best": 1}, [2, 4, 5]),
        ([5.0, 1.0, 3.0, 2.0, 4.0], {"keep_last": 1, "keep_best": 2}, [2, 4, 5]),
        (
            [5.0, 1.0, 3.0, 2.0, 4.0],
            {"keep_last": 1, "keep_best": 2, "higher_is_better": True},
            [1, 5],
        ),
        ([5.0, 1.0, 3.0, 2.0, 4.0], {"keep_last": 3, "keep_best": 0}, [3, 4, 5]),
        ([5.0, 1.0], {"keep_last": 1, "keep_best": 3}, [1, 2]),
        ([2.0, float("nan"), 3.0, float("inf")], {"keep_last": 1, "keep_best": 1}, [1, 4]),
        (
            [2.0, float("nan"), 3.0, 1.0],
            {"keep_last": 1, "keep_best": 1, "higher_is_better": True},
            [3, 4],
        ),
    ],
)
def test_the_newest_and_the_best_stay(
    tmp_path: Path, losses: list[float], kept: dict[str, Any], stay: list[int]
) -> None:
    checkpoints = CheckpointManager(tmp_path, **kept)
    for step, loss in enumerate(losses, 1):
        checkpoints.save(step, {"step": jnp.int32(step)}, {"loss": loss})
    checkpoints.wait()
    assert checkpoints.steps() == stay


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    losses=st.lists(st.none() | st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=6),
    keep_last=st.integers(1, 3),
    keep_best=st.integers(0, 4),
    higher=st.booleans(),
)
def test_what_stays_is_the_newest_and_of_equally_good_ones_the_later(
    tmp_path_factory: pytest.TempPathFactory,
    losses: list[float | None],
    keep_last: int,
    keep_best: int,
    higher: bool,
) -> None:
    checkpoints = CheckpointManager(
        tmp_path_factory.mktemp("kept"),
        keep_last=keep_last,
        keep_best=keep_best,
        higher_is_better=higher,
    )
    for step, loss in enumerate(losses):
        checkpoints.save(step, {"step": jnp.int32(step)}, {} if loss is None else {"loss": loss})
    checkpoints.wait()
    steps = range(len(losses))
    worse = {
        step: [s for s in steps if better(losses[s], losses[step], higher, s > step)]
        for step in steps
    }
    best = {step for step in steps if losses[step] is not None and len(worse[step]) < keep_best}
    assert checkpoints.steps() == sorted(best | set(steps[-keep_last:]))


def better(one: float | None, other: float | None, higher: bool, later: bool) -> bool:
    if one is None or other is None:
        return False
    return later if one == other else (one > other) == higher


class Kept(NamedTuple):
    """A checkpoint that is kept, for the second implementation of what stays."""

    step: int
    hour: int
    gb: int
    loss: float


def survivors(there: list[Kept], by: CheckpointManager) -> set[int]:
    """What stays of some checkpoints, by trying every oldest one that may be kept besides."""
    steps = [each.step for each in there]
    newest = {each for each in steps if len([s for s in steps if s > each]) < by.keep_last}
    ranks = {each.step: (each.loss, -each.step) for each in there}
    best = {s for s in steps if sum(ranks[o] < ranks[s] for o in steps) < by.keep_best}
    timed: list[Kept] = []
    for each in there:
        if by.keep_hours and all(each.hour - o.hour >= by.keep_hours for o in timed):
            timed.append(each)
    besides = {s for s in steps if by.keep_every and s in range(0, 999, by.keep_every)}
    besides |= {each.step for each in timed}
    tried = [newest | best | {s for s in besides if s >= oldest} for oldest in (*steps, 999)]
    sizes = {each.step: each.gb for each in there}
    fits = [kept for kept in tried if sum(sizes[s] for s in kept) <= (by.keep_gb or 999)]
    return fits[0] if fits else newest | best


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    made=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(0, 4), st.floats(0, 1)),
        min_size=1,
        max_size=12,
    ),
    keep_last=st.integers(1, 3),
    keep_best=st.integers(0, 2),
    keep_every=st.integers(0, 4),
    keep_hours=st.integers(0, 6),
    keep_gb=st.sampled_from([0.0, 0.5, 1.5, 4.5, 8.5, 12.5]),
)
def test_what_stays_by_step_by_time_and_by_size_is_that_of_a_second_implementation(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[int, int, int, float]], **kept: Any
) -> None:
    checkpoints = CheckpointManager(tmp_path_factory.mktemp("kept"), **kept)
    there: list[Kept] = []
    step = 0
    hour = 0
    for steps, hours, gb, loss in made:
        step += steps
        hour += hours
        there.append(Kept(step, hour, gb, loss))
        write_checkpoint(checkpoints, there[-1])
        checkpoints._retire()
        stays = survivors(there, checkpoints)
        assert set(checkpoints.steps()) == stays
        there = [each for each in there if each.step in stays]


def write_checkpoint(checkpoints: CheckpointManager, each: Kept) -> None:
    """The files of one that is complete; its data is a hole of that many GB."""
    folder = checkpoints.path(each.step)
    folder.mkdir()
    with (folder / "data").open("wb") as data:
        data.truncate(each.gb * 10**9)
    os.utime(folder / "data", (3600 * each.hour, 3600 * each.hour))
    noted = {"step": each.step, "metrics": {"loss": each.loss}}
    manager._write_manifest(folder, noted)


def test_a_broken_one_stays_and_does_not_count(folder: Path) -> None:
    (folder / "20" / "jaxbig.json").unlink()
    save(folder, 30, 40, keep_last=1)
    assert CheckpointManager(folder).steps() == [20, 40]


def test_leftovers_of_a_kill_are_cleaned_and_nothing_else(folder: Path) -> None:
    before = contents(folder)
    for name in (
        "saving-30",
        "saving-30.orbax-checkpoint-tmp",
        "saving-40.orbax-checkpoint-tmp-1",
        "removing-5",
    ):
        (folder / name / "state").mkdir(parents=True)
        (folder / name / "state" / "data").write_text("half")
    (folder / "saving-grace").write_text("not ours")
    CheckpointManager(folder).clean()
    assert contents(folder) == {**before, "saving-grace": b"not ours"}
    assert sorted(entry.name for entry in folder.iterdir()) == ["10", "20", "saving-grace"]


def test_a_step_that_was_broken_is_saved_again_and_the_broken_one_is_kept(folder: Path) -> None:
    wanted = abstract(make_state(0))
    for damage in ("first", "second", "third"):
        (folder / "20" / "jaxbig.json").write_text(damage)
        checkpoints = CheckpointManager(folder)
        restored = checkpoints.restore(wanted)
        assert restored is not None and restored.step == 10
        checkpoints.set_aside(restored.step)
        save(folder, 20)
        again = checkpoints.restore(wanted)
        assert again is not None and again.step == 20 and bits(again.state) == bits(make_state(20))
    kept = [(entry / "jaxbig.json").read_text() for entry in (folder.parent / "broken").iterdir()]
    assert sorted(kept) == ["first", "second", "third"]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE], ids=["removed", "stale over NFS"])
def test_a_file_that_goes_while_a_save_is_watched_ends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (folder / "saving-30").mkdir()
    for name in ("gone", "here"):
        (folder / "saving-30" / name).write_bytes(b"abc")
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("gone"):
            raise OSError(number, os.strerror(number))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert manager._bytes_in(folder, "saving-30*") == 3


def test_a_save_without_room_fails_in_one_sentence_gives_its_room_back_and_can_be_made_again(
    folder: Path,
) -> None:
    checkpoints = CheckpointManager(folder, keep_last=2)
    big = {"kernel": jnp.arange(2**20, dtype=jnp.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # no file beyond 1 MiB
        with pytest.raises(
            Failed, match=f"saving step 30 to {folder}/30 failed: .*too large"
        ) as error:
            checkpoints.save(30, big, {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert sorted(entry.name for entry in folder.iterdir()) == ["10", "20"]
    before = checkpoints.restore(abstract(make_state(0)))
    assert before is not None and bits(before.state) == bits(make_state(20))
    checkpoints.save(30, big, {})
    checkpoints.wait()
    after = checkpoints.restore(abstract(big))
    assert after is not None and after.step == 30 and bits(after.state) == bits(big)
