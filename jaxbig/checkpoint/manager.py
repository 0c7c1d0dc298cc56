"""Saves and restores checkpoints with Orbax; every array is verified by its digest.

A checkpoint is a folder named by its step. Orbax writes it under another name, while the arrays are
hashed as they were on the devices. Then the hashes of their chunks are added, and a manifest with
the digest of every array and the size of every file, and the folder is renamed. So a folder with a
step's name was complete once, and any later damage is noticed before it is used. What never changes
in a run, a state's variables `frozen`, is saved once, in the folder `frozen` beside the steps; each
manifest has its digests too. Only this module imports Orbax.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import v1 as ocp

from jaxbig.arrays.tree import copy_host_leaves, flatten_with_paths
from jaxbig.checkpoint.digest import (
    Chunks,
    Part,
    collect,
    digests,
    first_changed,
    hash_chunks,
    leaf_digests,
    local_parts,
    split_hashes,
    state_digest,
)
from jaxbig.distributed.multihost import gather, is_process_zero, on_process_zero, unique_key
from jaxbig.distributed.watchdog import RESTORES
from jaxbig.errors import Failed, Refused
from jaxbig.system.disk import replace, sync, write_file

log = logging.getLogger("jaxbig")

MANIFEST = "jaxbig.json"
HASHES = "jaxbig.hashes"
"""The file with the hashes of all chunks of the arrays, in the order of their paths."""
SMALL = 2**20
"""Bytes of a file, at most, of which a sha256 is kept too. Larger ones hold arrays, or their
hashes, which are verified once they are read."""
FROZEN = "frozen"
"""The variables that are saved once, and the name of their folder."""
FROZEN_PATH = f"variables/{FROZEN}/"
SAVE_TIMEOUT_S = 7 * 24 * 3600
"""A large save may take long; the watchdog notices one that hangs."""
POLL = 0.5
"""Seconds between two checks of the progress of a save that is waited for."""
Fit = Callable[[Any, dict[str, str]], Any]
"""(abstract state, shapes of a checkpoint by path) -> the abstract state to restore."""
Choose = Callable[[dict[str, str]], dict[str, Any]]
"""(shapes of a checkpoint, as `float32[16, 4]`, by path) -> the leaves to restore, by path, each as
an abstract array for Orbax."""
ReportActivity = Callable[[str], None]
"""Called with an activity whenever a part of it is done."""
OnSaved = Callable[[int, Path], None]
"""Called with a step and the folder of its checkpoint, which is complete."""


class CorruptCheckpointError(Exception):
    """A checkpoint is not what was saved; the message names the leaf or file."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state that was verified, and its digest."""

    step: int
    state: Any
    state_sha256: str


class CheckpointManager:
    """The checkpoints in a folder: the newest ones, and the best ones by a metric."""

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        keep_every: int = 0,
        keep_hours: float = 0.0,
        keep_gb: float = 0.0,
        criterion: str = "loss",
        higher_is_better: bool = False,
        report_activity: ReportActivity = lambda activity: None,
        on_saved: OnSaved = lambda step, folder: None,
    ):
        """
        Args:
          folder: holds one folder a checkpoint.
          keep_last: how many of the newest are kept.
          keep_best: how many of the best are kept besides.
          keep_every: steps that are multiples of it are kept besides; 0: none.
          keep_hours: hours after each of which one is kept besides, and the first; 0: none.
          keep_gb: GB of all, above which the oldest of those kept besides are removed; 0: no limit.
          criterion: the metric by which they are ranked.
          higher_is_better: whether a higher metric is better.
          report_activity: called whenever a part of a long operation is done.
          on_saved: called when a save is found to be complete, by a later call of a method.
        """
        self.folder = folder.absolute()
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.keep_every = keep_every
        self.keep_hours = keep_hours
        self.keep_gb = keep_gb
        self.criterion = criterion
        self.higher_is_better = higher_is_better
        self.report_activity = report_activity
        self.on_saved = on_saved
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, futures.Future[str]] | None = None
        self._parts_hashed = 0  # of the save under way, by its own thread
        self._frozen_digests: dict[str, str] | None = None
        self.state_sha256 = ""
        """Of the last state that was saved, on process 0."""

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """The steps of all folders with a step's name, complete or not, oldest first."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(
            int(entry.name) for entry in entries if re.fullmatch(r"0|[1-9]\d*", entry.name)
        )

    def clean(self) -> None:
        """Removes the remains of saves and removals that were killed.

        Only the run that owns the folder may call it.
        """

        def remove() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for entry in self.folder.iterdir():
                if re.match(r"(saving|removing)-\d+", entry.name):
                    entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)

        on_process_zero(remove)

    # -- saving

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Starts to save in the background, once the save before it is done.

        Args:
          step: of the state.
          state: arrays on the devices.
          metrics: of an evaluation of the state, empty if there was none.
        """
        self.wait()
        # process 0's save takes longest: the others wait for it here, not in a collective
        on_process_zero(lambda: None)
        self.report_activity("saves")
        changing, frozen = _split_frozen(state)
        manifest = {
            "step": step,
            "metrics": metrics,
            "criterion": self.criterion,
            "higher_is_better": self.higher_is_better,
            "shapes": _shapes(state),
            "leaves": self._save_frozen(frozen) if frozen else {},
        }
        temporary = self.folder / f"saving-{step}"
        saving = ocp.Context()
        saving.asynchronous.timeout_secs = SAVE_TIMEOUT_S
        changing = copy_host_leaves(changing)
        parts = local_parts(changing)
        self.report_activity("saves")
        try:
            with saving:
                response = ocp.save_async(str(temporary), changing)
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = (
            step,
            self._thread.submit(
                self._commit, response, temporary, manifest, parts=parts, key=unique_key()
            ),
        )

    def _frozen(self) -> "CheckpointManager":
        """The one checkpoint of the frozen variables, as that of step 0."""
        return CheckpointManager(self.folder / FROZEN, report_activity=self.report_activity)

    def _save_frozen(self, frozen: Any) -> dict[str, str]:
        """Saves frozen variables unless they are there; returns when they are on disk.

        Returns:
          Their digests, by their path in the state.
        """
        if self._frozen_digests is None:
            self._frozen_digests, _ = digests(frozen, lambda: self.report_activity("saves"))
        expected = self._frozen_digests
        manager = self._frozen()

        def is_there() -> bool:
            with contextlib.suppress(CorruptCheckpointError):
                return manager.manifest(0)["leaves"] == expected
            return False

        if not on_process_zero(is_there):
            manager.clean()
            on_process_zero(lambda: shutil.rmtree(manager.path(0), ignore_errors=True))
            manager.save(0, frozen, {})
            manager.wait()
            manager.close()
        return {f"{FROZEN_PATH}{path}": digest for path, digest in expected.items()}

    def wait(self, only_if_done: bool = False) -> None:
        """Returns once the save under way is on disk; `Failed` if it failed.

        Args:
          only_if_done: return at once if it is not done yet.
        """
        if self._pending is None or (only_if_done and not self._pending[1].done()):
            return
        self._watch()
        step, future = self._pending
        self._pending = None
        try:
            self.state_sha256 = future.result()
        except Exception as error:
            raise self._failed(step, error) from error
        self.on_saved(step, self.path(step))

    def close(self) -> None:
        """Waits for the save under way, successful or not; nothing is written afterwards."""
        self._watch()
        self._thread.shutdown()

    def _watch(self) -> None:
        """Returns when the save under way has ended; reports its progress, of any process."""
        if self._pending is None:
            return
        step, future = self._pending
        before = None
        while not future.done():
            now = (self._parts_hashed, _bytes_in(self.folder, f"saving-{step}*"))
            if now != before:
                self.report_activity(f"waits for its save of step {step}")
            before = now
            futures.wait([future], POLL)

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a later evaluation to a checkpoint.

        Then keeps the best checkpoints, as if it had been evaluated before its save.
        """
        self.wait()

        def write() -> None:
            _write_manifest(self.path(step), {**self.manifest(step), "metrics": metrics})
            self._retire()

        on_process_zero(write)

    def _failed(self, step: int, error: Exception) -> Failed:
        if is_process_zero():
            for left in self.folder.glob(f"saving-{step}*"):
                shutil.rmtree(left, ignore_errors=True)  # frees its space
        return Failed(
            f"saving step {step} to {self.path(step)} failed: {_one_line(error)}; earlier "
            f"checkpoints are untouched: fix the cause and rerun the command to resume."
        )

    def _commit(
        self,
        response: Any,
        temporary: Path,
        manifest: dict[str, Any],
        *,
        parts: list[Part],
        key: str,
    ) -> str:
        """Completes a save; returns its `state_sha256`, on process 0."""
        # on one core, while Orbax writes on the others
        chunks = hash_chunks(parts, self._count, threads=1)
        parts.clear()  # frees what only they hold
        hashes = collect(chunks, key)
        response.result()
        if not is_process_zero():
            return ""
        manifest["leaves"] |= leaf_digests(hashes)
        manifest["state_sha256"] = state_digest(manifest["leaves"])
        (temporary / HASHES).write_bytes(b"".join(hashes[path] for path in sorted(hashes)))
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        manifest["files"] = {}
        for file in files:
            name = file.relative_to(temporary).as_posix()
            size = file.stat().st_size
            manifest["files"][name] = [size, _file_digest(file) if size <= SMALL else ""]
            sync(file)
            self._count()
        _write_manifest(temporary, manifest)
        replace(temporary, self.path(manifest["step"]))
        self._retire()
        return manifest["state_sha256"]

    def _count(self) -> None:
        self._parts_hashed += 1

    def _retire(self) -> None:
        """Removes the checkpoints that are not to be kept."""
        ranked, complete = self._ranked()
        kept = {*complete[-self.keep_last :], *ranked[: self.keep_best]}
        try:
            kept |= self._kept_besides(complete, kept)
            for step in set(complete) - kept:
                shutil.rmtree(self.path(step).rename(self.folder / f"removing-{step}"))
        except OSError as error:
            log.warning(
                "saved step %s, but could not remove an older checkpoint: %s", complete[-1], error
            )

    def _kept_besides(self, complete: list[int], kept: set[int]) -> set[int]:
        """Those kept by step and by time: the newest ones that leave all within `keep_gb`.

        Args:
          complete: the steps of all checkpoints, oldest first.
          kept: those that stay in any case.
        """
        besides = {step for step in complete if self.keep_every and step % self.keep_every == 0}
        last = -math.inf
        for step in complete if self.keep_hours else ():
            saved = _saved_at(self.path(step))
            if saved - last >= 3600 * self.keep_hours:
                besides.add(step)
                last = saved
        besides -= kept
        left = 1e9 * self.keep_gb - _bytes_in(self.folder, FROZEN)
        for step in [*kept, *sorted(besides, reverse=True)] if self.keep_gb else ():
            left -= _bytes_in(self.folder, str(step))
            if left < 0 and step in besides:
                besides = {each for each in besides if each > step}
        return besides

    def _ranked(self) -> tuple[list[int], list[int]]:
        """The evaluated checkpoints, best first, the newest of equals; and all, oldest first.

        Corrupt ones are neither counted nor removed: a restore names them.
        """
        complete = []
        scores = []
        for step in self.steps():
            with contextlib.suppress(CorruptCheckpointError):
                noted = self.manifest(step)
                complete.append(step)
                score = noted["metrics"].get(noted.get("criterion", self.criterion))
                if score is not None and math.isfinite(score):
                    higher = noted.get("higher_is_better", self.higher_is_better)
                    scores.append((score if higher else -score, step))
        return [step for _, step in sorted(scores, reverse=True)], complete

    # -- restoring

    def restore(
        self,
        abstract: Any,
        fit: Fit = lambda abstract, shapes: abstract,
        *,
        steps: Sequence[int] | None = None,
        only: tuple[str, ...] = (),
    ) -> Any:
        """Restores the first good checkpoint; logs which before it are corrupt, and how.

        Args:
          abstract: shapes, dtypes and shardings of the state.
          fit: adapts `abstract` to a checkpoint, where that may differ.
          steps: the checkpoints to try, in this order; None: all, the newest first.
          only: fields of the state that are restored, if `abstract` has only these.

        Returns:
          A `Restored`, or None if there is no checkpoint.

        Raises:
          Failed: all of them are corrupt.
          Refused: shapes differ.
        """
        if steps is None:
            steps = self.choose("last")
        return self._first_good(lambda step: self._load(step, abstract, fit, only), steps)

    def choose(self, which: str, option: str = "--step") -> list[int]:
        """The steps to restore from, in order of preference, the same on all processes.

        Args:
          which: "last" or "best", where the next best follows, or the number of a step.
          option: the name of its option, for messages.

        Raises:
          Refused: there is no such checkpoint; the message names those there are.
        """

        def find() -> tuple[list[int], list[int]]:
            saved = self.steps()
            if which == "last":
                return saved[::-1], saved
            if which == "best":
                return self._ranked()[0], saved
            return [step for step in saved if str(step) == which], saved

        chosen, saved = on_process_zero(find)
        if saved and not chosen:
            there = ", ".join(map(str, saved))
            if which == "best":
                raise Refused(f"no checkpoint in {self.folder} is evaluated; there are {there}.")
            raise Refused(
                f"{option} {which}: it must be last, best or a step with a checkpoint, of which "
                f"there are {there}."
            )
        return chosen

    def restore_parameters(self, best: bool = False) -> Restored | None:
        """Restores `params`, and `batch_stats` if there are any, in host memory, of any model.

        Args:
          best: take the best checkpoint that is good, not the newest.

        Returns:
          As state, the variables that `model.apply` takes; None if there is no checkpoint.
        """

        def choose(shapes: dict[str, str]) -> dict[str, Any]:
            prefixes = ("params/", "variables/batch_stats/")
            paths = [path for path in shapes if path.startswith(prefixes)]
            return {path: np.empty(*shape_and_dtype(shapes[path])) for path in paths}

        restored = self.restore_some(choose, best)
        if restored is None:
            return None
        found = unflatten_dict(restored.state, sep="/")
        trees = {"params": found.get("params"), **found.get("variables", {})}
        return dataclasses.replace(
            restored, state={name: tree for name, tree in trees.items() if tree}
        )

    def restore_some(self, choose: Choose, best: bool = False) -> Restored | None:
        """Restores only the leaves that `choose` picks, of the newest good checkpoint, or the best.

        Returns:
          As state, the leaves by path; None if there is no checkpoint.
        """

        def load(step: int) -> Restored:
            noted = self._verify_files(step)
            chosen = choose(noted["shapes"])
            own = {path: x for path, x in chosen.items() if not path.startswith(FROZEN_PATH)}
            leaves: dict[str, Any] = {}
            if own:
                leaves = flatten_with_paths(
                    self._read(step, unflatten_dict(own, sep="/"), partial=True)
                )
                self._verify_leaves(step, noted, leaves)
            if len(own) < len(chosen):
                self._verify_frozen(noted)
                leaves |= self._read_frozen(chosen)
            return Restored(step, leaves, noted["state_sha256"])

        ranked, steps = on_process_zero(lambda: [self._ranked()[0] if best else [], self.steps()])
        return self._first_good(
            load, [*ranked, *(step for step in reversed(steps) if step not in ranked)]
        )

    def _read_frozen(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """The chosen leaves that are frozen, by path."""
        wanted = {
            path.removeprefix(FROZEN_PATH): x
            for path, x in chosen.items()
            if path.startswith(FROZEN_PATH)
        }
        restored = self._frozen().restore_some(lambda shapes: wanted)
        if restored is None:
            raise CorruptCheckpointError(f"misses the folder {self.folder / FROZEN}")
        return {f"{FROZEN_PATH}{path}": x for path, x in restored.state.items()}

    def set_aside(self, beyond: int) -> None:
        """Moves the checkpoints after a step, all corrupt, to `broken/`."""

        def move() -> None:
            for step in self.steps():
                if step > beyond:
                    broken = self.folder.parent / "broken"
                    broken.mkdir(exist_ok=True)
                    target = unused(broken, str(step))
                    self.path(step).rename(target)
                    log.warning("moved %s to %s", self.path(step), target)

        on_process_zero(move)

    def manifest(self, step: int) -> dict[str, Any]:
        """What was noted of a checkpoint when it was saved.

        Raises:
          CorruptCheckpointError: it cannot be trusted.
        """
        if self.path(step).is_symlink() or not self.path(step).is_dir():
            raise CorruptCheckpointError("is a link or a file, so no save of jaxbig's")
        try:
            text, seal, _ = (self.path(step) / MANIFEST).read_text().rsplit("\n", 2)
        except FileNotFoundError:
            raise CorruptCheckpointError(f"misses its file {MANIFEST}") from None
        except (OSError, ValueError):
            text = ""
            seal = None
        if hashlib.sha256(text.encode()).hexdigest() != seal:
            raise CorruptCheckpointError(f"has changed in its file {MANIFEST} since it was saved")
        noted = json.loads(text)
        if noted["step"] != step:
            raise CorruptCheckpointError(f"is a copy of step {noted['step']}")
        return noted

    def _first_good(self, load: Callable[[int], Any], steps: Sequence[int]) -> Any:
        reasons = []
        for step in steps:
            try:
                return load(step)
            except CorruptCheckpointError as error:
                reasons.append(f"checkpoint {self.path(step)} {error}")
                log.warning("%s; trying the one before it", reasons[-1])
        if reasons:
            raise Failed(
                f"none of {len(reasons)} checkpoints can be used, and nothing was deleted: "
                f"{'; '.join(reasons)}. Bring one back, or start again in another --workdir."
            )
        return None

    def _verify_files(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint whose files are as saved; process 0 reads them."""

        def progress() -> None:
            self.report_activity(f"verifies its checkpoint of step {step}")

        def look() -> tuple[dict[str, Any], str]:
            try:
                progress()
                manifest = self.manifest(step)
                if HASHES not in manifest["files"]:
                    raise Refused(
                        f"{self.path(step)} was saved by an older jaxbig, which hashed otherwise: "
                        f"resume it with that one (`versions` in run.json), or give another "
                        f"--workdir."
                    )
                for name, (size, digest) in manifest["files"].items():
                    file = self.path(step) / name
                    if file.is_symlink() or not file.is_file():
                        return {}, f"misses its file {name}"
                    if file.stat().st_size != size:
                        found = file.stat().st_size
                        return {}, f"has {found} bytes where {size} were saved in its file {name}"
                    progress()
                    if digest and _file_digest(file) != digest:
                        return {}, f"has changed in its file {name} since it was saved"
            except (CorruptCheckpointError, OSError) as error:
                return {}, str(error)
            return manifest, ""

        manifest, problem = on_process_zero(look)
        if problem:
            raise CorruptCheckpointError(problem)
        return manifest

    def _read(self, step: int, abstract: Any, partial: bool) -> Any:
        """Reads arrays with Orbax; raises on all processes if one fails.

        Args:
          step: of the checkpoint.
          abstract: what to read.
          partial: whether `abstract` has only some of the leaves.
        """
        state = None
        problem = ""
        self.report_activity(RESTORES)
        reading = ocp.Context()
        reading.pytree.loading.partial_load = partial
        try:
            with reading:
                state = ocp.load(str(self.path(step)), abstract)
        except Exception as error:
            problem = f"cannot be read: {_one_line(error.__cause__ or error)}"
        _raise_together(problem)
        return state

    def _verify_frozen(self, manifest: dict[str, Any]) -> None:
        """Raises on all processes if the frozen variables are not those that were saved."""

        def find() -> str:
            with contextlib.suppress(CorruptCheckpointError):  # its restore says what it is
                saved = self._frozen().manifest(0)["leaves"]
                for path, digest in manifest["leaves"].items():
                    name = path.removeprefix(FROZEN_PATH)
                    if path != name and saved.get(name) != digest:
                        return path
            return ""

        if changed := on_process_zero(find):
            raise CorruptCheckpointError(f"has changed in its leaf {changed} since it was saved")

    def _verify_leaves(self, step: int, manifest: dict[str, Any], state: Any) -> None:
        """Raises on all processes if some array is not what was saved.

        Args:
          step: of the checkpoint.
          manifest: its manifest.
          state: all that was read of it, or some leaves by path.
        """
        activity = f"verifies its checkpoint of step {step}"
        parts = local_parts(state, replicas=True)
        chunks = hash_chunks(parts, lambda: self.report_activity(activity))
        _raise_together(self._find_change(step, manifest, parts, chunks))

    def _find_change(
        self, step: int, manifest: dict[str, Any], parts: list[Part], chunks: Chunks
    ) -> str:
        shapes = {
            path: shape_and_dtype(text)
            for path, text in manifest["shapes"].items()
            if not path.startswith(FROZEN_PATH)
        }
        try:
            data = (self.path(step) / HASHES).read_bytes()
        except OSError as error:
            return f"cannot be read: {_one_line(error)}"
        saved = split_hashes(
            data, {path: (shape, dtype.itemsize) for path, (shape, dtype) in shapes.items()}
        )
        if any(manifest["leaves"][path] != each for path, each in leaf_digests(saved).items()):
            return f"has changed in its file {HASHES} since it was saved"
        changed = first_changed(parts, chunks, saved)
        return f"has changed in its leaf {changed} since it was saved" if changed else ""

    def _load(self, step: int, abstract: Any, fit: Fit, only: tuple[str, ...]) -> Restored:
        manifest = self._verify_files(step)
        shapes = {
            path: text
            for path, text in manifest["shapes"].items()
            if not only or path.split("/")[0] in only
        }
        abstract = fit(abstract, shapes)
        expected = _shapes(abstract)
        for path in expected | shapes:  # Orbax would cast dtypes and leave out leaves silently
            here = expected.get(path, "nothing")
            saved = shapes.get(path, "nothing")
            if here != saved:
                raise Refused(
                    f"checkpoint {self.path(step)} holds {path} as {saved}, this experiment as "
                    f"{here}: run the experiment that saved it, or give another --workdir."
                )
        changing, frozen = _split_frozen(abstract)
        state = self._read(step, changing, partial=bool(only))
        self._verify_leaves(step, manifest, state)
        if frozen:
            self._verify_frozen(manifest)
            restored = self._frozen().restore(frozen)
            if restored is None:
                raise CorruptCheckpointError(f"misses the folder {self.folder / FROZEN}")
            state = _with_frozen(state, restored.state)
        return Restored(step, state, manifest["state_sha256"])


def _split_frozen(state: Any) -> tuple[Any, Any]:
    """A state, or a dictionary of its fields, without its frozen variables; and these, or None."""
    fields = state if isinstance(state, dict) else vars(state) if _is_state(state) else {}
    variables = fields.get("variables")
    if not isinstance(variables, dict) or FROZEN not in variables:
        return state, None
    others = {name: each for name, each in variables.items() if name != FROZEN}
    return _with_variables(state, others), variables[FROZEN]


def _with_frozen(state: Any, frozen: Any) -> Any:
    """The inverse of `_split_frozen`."""
    variables = state["variables"] if isinstance(state, dict) else state.variables
    return _with_variables(state, {**variables, FROZEN: frozen})


def _with_variables(state: Any, variables: Any) -> Any:
    if isinstance(state, dict):
        return {**state, "variables": variables}
    return state.replace(variables=variables)


def _is_state(state: Any) -> bool:
    return dataclasses.is_dataclass(state) and hasattr(state, "variables")


def _raise_together(problem: str) -> None:
    """Raises on every process if any of them has a problem, so that all restore the same step."""
    for process, text in enumerate(gather(problem)):
        if text and jax.process_count() > 1:
            raise CorruptCheckpointError(f"{text} (seen by process {process})")
        if text:
            raise CorruptCheckpointError(text)


def _shapes(state: Any) -> dict[str, str]:
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flatten_with_paths(state).items()
    }


def shape_and_dtype(text: str) -> tuple[tuple[int, ...], Any]:
    """Parses `float32[16, 4]`, as a manifest has it."""
    name, _, shape = text.partition("[")
    return tuple(json.loads(f"[{shape}")), jnp.dtype(name)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if len(text) < 400:
        return text
    return f"{text[:150]} ... {text[-250:]}"  # the cause is at the end


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=1)
    write_file(folder / MANIFEST, f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")


def _bytes_in(folder: Path, pattern: str) -> int:
    """The size of all files below the entries of that name, while others write them."""
    size = 0
    for root, _, names in itertools.chain.from_iterable(map(os.walk, folder.glob(pattern))):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile, or a stale network handle
                size += os.stat(os.path.join(root, name)).st_size
    return size


def _saved_at(folder: Path) -> float:
    """When a checkpoint's files were written, in seconds since 1970; not when it was noted on."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return min((file.stat().st_mtime for file in files), default=0.0)


def _file_digest(file: Path) -> str:
    """The sha256 of a small file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def unused(folder: Path, name: str) -> Path:
    """The first of `name-0`, `name-1`, ... that is not in the folder."""
    for number in itertools.count():
        path = folder / f"{name}-{number}"
        if not path.exists():
            return path
    raise AssertionError("unreachable")
