"""Checkpoints: the one room that knows Orbax.

A checkpoint is a folder named by its step. Orbax writes it under another name; then a manifest is added, with
the sha256 of every file, and of every leaf as it was on the devices, and the folder is renamed. So a folder
with a step's name was whole once, and whatever has happened to it since is noticed before it is used.
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
import sys
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import v1 as ocp

from jaxbig.arrays.tree import copy_host_leaves, flatten_with_paths
from jaxbig.checkpoint.digest import PIECE, digests
from jaxbig.distributed.multihost import gather, is_process_zero, on_process_zero
from jaxbig.distributed.watchdog import RESTORES
from jaxbig.errors import Failed, Refused
from jaxbig.system.disk import replace, sync

log = logging.getLogger("jaxbig")

MANIFEST = "jaxbig.json"
PATIENT = ocp.options.AsyncOptions(timeout_secs=7 * 24 * 3600)
"""A large save takes as long as it takes; one that hangs is the watchdog's to notice."""
POLL = 0.5
"""Seconds between two looks at whether a save that is waited for goes on."""
Fit = Callable[[Any, dict[str, str]], Any]
Choose = Callable[[dict[str, str]], dict[str, Any]]
"""From a checkpoint's leaves, as `float32[16, 4]`, by path, those that are wanted, each as what Orbax takes for it."""
Tell = Callable[[str], None]
"""Called with what is done, whenever a part of it is done."""


def _unraisable(said: Any) -> None:
    """Passes on what could not be raised, but for what Orbax's threads say by the page after a save has failed."""
    if str(said.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(said)


sys.unraisablehook = _unraisable


class Broken(Exception):
    """A checkpoint is not what was saved; says which leaf or file."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state that was verified, and its digest."""

    step: int
    state: Any
    state_sha256: str


class Checkpoints:
    """The checkpoints in a folder; keeps the newest `keep_last`, and the `keep_best` best by a metric."""

    def __init__(
        self,
        folder: Path,
        keep_last: int = 1,
        keep_best: int = 0,
        criterion: str = "loss",
        higher: bool = False,
        tell: Tell = lambda doing: None,
    ):
        self.folder, self.tell = folder.absolute(), tell
        self.keep_last, self.keep_best, self.criterion, self.higher = (
            keep_last,
            keep_best,
            criterion,
            higher,
        )
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, futures.Future[None]] | None = None
        self._pieces = 0  # hashed of the save under way, by its own thread

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """The steps of all that has a step's name, whole or not, oldest first."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(
            int(entry.name) for entry in entries if re.fullmatch(r"0|[1-9]\d*", entry.name)
        )

    def clean(self) -> None:
        """Removes what a save or a removal that was killed has left; only for the one run that holds the folder."""

        def remove() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for entry in self.folder.iterdir():
                if re.match(r"(saving|removing)-\d+", entry.name):
                    entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)

        on_process_zero(remove)

    # -- saving

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> str:
        """Begins to save in the background, once the save before is done; gives `state_sha256`."""
        self.wait()
        on_process_zero(
            lambda: None
        )  # whose save before takes longest: the others wait for it here, not over the devices
        each, whole = digests(state, lambda: self.tell("saves"))
        self.tell("saves")
        manifest = {
            "step": step,
            "state_sha256": whole,
            "metrics": metrics,
            "criterion": self.criterion,
        }
        manifest |= {"higher_is_better": self.higher, "shapes": _shapes(state), "leaves": each}
        temporary = self.folder / f"saving-{step}"
        try:
            with ocp.Context(async_options=PATIENT):
                response = ocp.save_async(str(temporary), copy_host_leaves(state))
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = step, self._thread.submit(self._commit, response, temporary, manifest)
        return whole

    def wait(self, only_if_done: bool = False) -> None:
        """Until the save under way is on disk; `Failed` if it failed."""
        if self._pending is None or (only_if_done and not self._pending[1].done()):
            return
        self._watch()
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            raise self._failed(step, error) from error

    def close(self) -> None:
        """Lets a save under way end, whatever comes of it; nothing is written afterwards."""
        self._watch()
        self._thread.shutdown()

    def _watch(self) -> None:
        """Returns when the save under way has ended, and tells of it while it goes on, on whichever process."""
        if self._pending is None:
            return
        (step, future), before = self._pending, None
        while not future.done():
            if (now := (self._pieces, _bytes_in(self.folder, f"saving-{step}*"))) != before:
                self.tell(f"waits for its save of step {step}")
            before = now
            futures.wait([future], POLL)

    def note(self, step: int, metrics: dict[str, float]) -> None:
        """Adds to a checkpoint what an evaluation after its save has found, and then keeps the best as if it had been
        found before."""
        self.wait()

        def write() -> None:
            _write_manifest(self.path(step), {**self.manifest(step), "metrics": metrics})
            self._retire()

        on_process_zero(write)

    def _failed(self, step: int, error: Exception) -> Failed:
        for left in self.folder.glob(f"saving-{step}*") if is_process_zero() else ():
            shutil.rmtree(left, ignore_errors=True)  # gives its room back
        return Failed(
            f"saving step {step} to {self.path(step)} failed: {_one_line(error)}; what was saved before it is "
            f"untouched: mend that, and run the same command again."
        )

    def _commit(self, response: Any, temporary: Path, manifest: dict[str, Any]) -> None:
        response.result()
        if not is_process_zero():
            return
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        manifest["files"] = {}
        for file in files:
            manifest["files"][file.relative_to(temporary).as_posix()] = _file_digest(
                file, self._count
            )
            sync(file)
        _write_manifest(temporary, manifest)
        replace(temporary, self.path(manifest["step"]))
        self._retire()

    def _count(self) -> None:
        self._pieces += 1

    def _retire(self) -> None:
        """Removes the checkpoints that are neither among the newest nor among the best."""
        ranked, whole = self._ranked()
        try:
            for step in set(whole) - set(whole[-self.keep_last :]) - set(ranked[: self.keep_best]):
                shutil.rmtree(self.path(step).rename(self.folder / f"removing-{step}"))
        except OSError as error:
            log.warning(
                "saved step %s, but could not remove an older checkpoint: %s", whole[-1], error
            )

    def _ranked(self) -> tuple[list[int], list[int]]:
        """The evaluated checkpoints, best first and of equals the newest; and all, oldest first. Broken ones are for
        a restore to name: they neither count nor go."""
        whole, scores = [], []
        for step in self.steps():
            with contextlib.suppress(Broken):
                noted = self.manifest(step)
                whole.append(step)
                score = noted["metrics"].get(noted.get("criterion", self.criterion))
                if score is not None and math.isfinite(score):
                    scores.append(
                        (score if noted.get("higher_is_better", self.higher) else -score, step)
                    )
        return [step for _, step in sorted(scores, reverse=True)], whole

    # -- restoring

    def restore(
        self,
        abstract: Any,
        fit: Fit = lambda abstract, shapes: abstract,
        most: int = sys.maxsize,
        only: tuple[str, ...] = (),
    ) -> Any:
        """The newest `Restored` up to step `most` that is whole, with the shardings of `abstract`; None if there is
        none at all. `fit` makes `abstract` suit what a checkpoint holds, shapes by path, where that may differ. only:
        the fields of the state that are restored, where `abstract` has no other.

        Says aloud which newer ones are broken and how. `Failed` if all are; `Refused` if shapes differ.
        """
        steps = [step for step in on_process_zero(self.steps)[::-1] if step <= most]
        return self._first_whole(lambda step: self._load(step, abstract, fit, only), steps)

    def restore_parameters(self, best: bool = False) -> Restored | None:
        """`params`, and `batch_stats` if there are any, of the newest whole checkpoint, or the best, of any model: on
        this host, as `model.apply` takes them."""
        places = {"params/": "params", "variables/batch_stats/": "batch_stats"}

        def choose(shapes: dict[str, str]) -> dict[str, Any]:
            paths = [path for path in shapes if path.startswith(tuple(places))]
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
        """The leaves by path that `choose` picks, of the newest whole checkpoint, or the best; no other is read."""

        def load(step: int) -> Restored:
            noted = self._verify_files(step)
            state = self._read(step, unflatten_dict(choose(noted["shapes"]), sep="/"), partial=True)
            return Restored(step, flatten_with_paths(state), noted["state_sha256"])

        ranked, steps = on_process_zero(lambda: [self._ranked()[0] if best else [], self.steps()])
        return self._first_whole(
            load, [*ranked, *(step for step in reversed(steps) if step not in ranked)]
        )

    def set_aside(self, beyond: int) -> None:
        """Moves what is beyond a step, which is broken, to `broken/`, so that its step can be saved again."""

        def move() -> None:
            for step in self.steps():
                if step > beyond:
                    broken = self.folder.parent / "broken"
                    broken.mkdir(exist_ok=True)
                    target = next(
                        path
                        for n in itertools.count()
                        if not (path := broken / f"{step}-{n}").exists()
                    )
                    self.path(step).rename(target)
                    log.warning("moved %s to %s", self.path(step), target)

        on_process_zero(move)

    def manifest(self, step: int) -> dict[str, Any]:
        """What was noted of a checkpoint when it was saved; `Broken` if that cannot be trusted."""
        if self.path(step).is_symlink() or not self.path(step).is_dir():
            raise Broken("is a link or a file, so no save of jaxbig's")
        try:
            text, seal, _ = (self.path(step) / MANIFEST).read_text().rsplit("\n", 2)
        except FileNotFoundError:
            raise Broken(f"misses its file {MANIFEST}") from None
        except (OSError, ValueError):
            text, seal = "", None
        if hashlib.sha256(text.encode()).hexdigest() != seal:
            raise Broken(f"has changed in its file {MANIFEST} since it was saved")
        noted = json.loads(text)
        if noted["step"] != step:
            raise Broken(f"is a copy of step {noted['step']}")
        return noted

    def _first_whole(self, load: Callable[[int], Any], steps: list[int]) -> Any:
        reasons = []
        for step in steps:
            try:
                return load(step)
            except Broken as broken:
                reasons.append(f"checkpoint {self.path(step)} {broken}")
                log.warning("%s; trying the one before it", reasons[-1])
        if reasons:
            raise Failed(
                f"none of {len(reasons)} checkpoints can be used, and nothing was deleted: {'; '.join(reasons)}. "
                f"Bring one back, or begin anew in another --workdir."
            )
        return None

    def _verify_files(self, step: int) -> dict[str, Any]:
        """The manifest; `Broken` if one of its files is not what was saved. One process looks."""

        def progress() -> None:
            self.tell(f"verifies its checkpoint of step {step}")

        def look() -> tuple[dict[str, Any], str]:
            try:
                progress()
                manifest = self.manifest(step)
                for name, (size, digest) in manifest["files"].items():
                    file = self.path(step) / name
                    if file.is_symlink() or not file.is_file():
                        return {}, f"misses its file {name}"
                    if file.stat().st_size != size:
                        return (
                            {},
                            f"has {file.stat().st_size} bytes where {size} were saved in its file {name}",
                        )
                    if _file_digest(file, progress) != [size, digest]:
                        return {}, f"has changed in its file {name} since it was saved"
            except (Broken, OSError) as broken:
                return {}, str(broken)
            return manifest, ""

        manifest, problem = on_process_zero(look)
        if problem:
            raise Broken(problem)
        return manifest

    def _read(self, step: int, abstract: Any, partial: bool) -> Any:
        """What Orbax reads, all leaves or those in `abstract` alone; `Broken` on all processes if one cannot."""
        state, problem = None, ""
        self.tell(RESTORES)
        reading = ocp.Context()
        reading.pytree.loading.partial_load = partial
        try:
            with reading:
                state = ocp.load(str(self.path(step)), abstract)
        except Exception as error:
            problem = f"cannot be read: {_one_line(error.__cause__ or error)}"
        _raise_together(problem)
        return state

    def _load(self, step: int, abstract: Any, fit: Fit, only: tuple[str, ...]) -> Restored:
        manifest = self._verify_files(step)
        shapes = {
            path: text
            for path, text in manifest["shapes"].items()
            if not only or path.split("/")[0] in only
        }
        want = _shapes(abstract := fit(abstract, shapes))
        for path in want | shapes:  # Orbax would cast a dtype, and leave out a leaf, without a word
            asked, saved = want.get(path, "nothing"), shapes.get(path, "nothing")
            if asked != saved:
                raise Refused(
                    f"checkpoint {self.path(step)} holds {path} as {saved}, this experiment as {asked}: run the "
                    f"experiment that saved it, or give another --workdir."
                )
        state = self._read(step, abstract, partial=bool(only))
        each, _ = digests(state, lambda: self.tell(f"verifies its checkpoint of step {step}"))
        changed = [path for path, digest in each.items() if manifest["leaves"][path] != digest]
        _raise_together(
            f"has changed in its leaf {changed[0]} since it was saved" if changed else ""
        )
        return Restored(step, state, manifest["state_sha256"])


def _raise_together(problem: str) -> None:
    """Raises `Broken` on every process if one of them, maybe one alone, has a problem: all restore the same step."""
    for process, said in enumerate(gather(problem)):
        if said:
            raise Broken(f"{said} (seen by process {process})" if jax.process_count() > 1 else said)


def _shapes(state: Any) -> dict[str, str]:
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flatten_with_paths(state).items()
    }


def shape_and_dtype(text: str) -> tuple[tuple[int, ...], Any]:
    """Those of a leaf that a manifest has as `float32[16, 4]`."""
    name, _, shape = text.partition("[")
    return tuple(json.loads(f"[{shape}")), jnp.dtype(name)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 400 else f"{text[:150]} ... {text[-250:]}"  # the cause stands last


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text, partial = json.dumps(manifest, indent=1), folder / f"{MANIFEST}.partial"
    partial.write_text(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")
    replace(partial, folder / MANIFEST)


def _bytes_in(folder: Path, pattern: str) -> int:
    """How many bytes there are in what has such a name in the folder, while others write it."""
    size = 0
    for root, _, names in itertools.chain.from_iterable(map(os.walk, folder.glob(pattern))):
        for name in names:
            with contextlib.suppress(
                OSError
            ):  # removed meanwhile; over a network it may be a stale handle
                size += os.stat(os.path.join(root, name)).st_size
    return size


def _file_digest(file: Path, progress: Callable[[], Any]) -> list[Any]:
    """A file's bytes and their sha256. progress: called before each `PIECE`."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        progress()
        while piece := stream.read(PIECE):
            digest.update(piece)
            progress()
    return [file.stat().st_size, digest.hexdigest()]
