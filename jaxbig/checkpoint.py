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
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxbig.errors import Failed, Refused
from jaxbig.processes import first, gather, leading
from jaxbig.state import apart_on_host, digests, leaves

log = logging.getLogger("jaxbig")

MANIFEST = "jaxbig.json"
PATIENT = ocp.options.AsyncOptions(timeout_secs=7 * 24 * 3600)
"""A large save takes as long as it takes; one that hangs is the watchdog's to notice."""
Fit = Callable[[Any, dict[str, str]], Any]


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
        self, folder: Path, keep_last: int = 1, keep_best: int = 0, criterion: str = "loss", higher: bool = False
    ):
        self.folder = folder.absolute()
        self.keep_last, self.keep_best, self.criterion, self.higher = keep_last, keep_best, criterion, higher
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """The steps of all that has a step's name, whole or not, oldest first."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(entry.name) for entry in entries if re.fullmatch(r"0|[1-9]\d*", entry.name))

    def clean(self) -> None:
        """Removes what a save or a removal that was killed has left; only for the one run that holds the folder."""

        def remove() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for entry in self.folder.iterdir():
                if re.match(r"(saving|removing)-\d+", entry.name):
                    entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)

        first(remove)

    # -- saving

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> str:
        """Begins to save in the background, once the save before is done; gives `state_sha256`."""
        self.wait()
        each, whole = digests(state)
        manifest = {"step": step, "state_sha256": whole, "metrics": metrics, "criterion": self.criterion}
        manifest |= {"higher_is_better": self.higher, "shapes": _shapes(state), "leaves": each}
        temporary = self.folder / f"saving-{step}"
        try:
            with ocp.Context(async_options=PATIENT):
                response = ocp.save_async(str(temporary), apart_on_host(state))
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = step, self._thread.submit(self._commit, response, temporary, manifest)
        return whole

    def wait(self, only_if_done: bool = False) -> None:
        """Until the save under way is on disk; `Failed` if it failed."""
        if self._pending is None or (only_if_done and not self._pending[1].done()):
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            raise self._failed(step, error) from error

    def close(self) -> None:
        """Lets a save under way end, whatever comes of it; nothing is written afterwards."""
        self._thread.shutdown()

    def _failed(self, step: int, error: Exception) -> Failed:
        for left in self.folder.glob(f"saving-{step}*") if leading() else ():
            shutil.rmtree(left, ignore_errors=True)  # gives its room back
        return Failed(
            f"saving step {step} to {self.path(step)} failed: {_one_line(error)}; what was saved before it is "
            f"untouched: mend that, and run the same command again."
        )

    def _commit(self, response: Any, temporary: Path, manifest: dict[str, Any]) -> None:
        response.result()
        if not leading():
            return
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        manifest["files"] = {file.relative_to(temporary).as_posix(): _file_digest(file) for file in files}
        text = json.dumps(manifest, indent=1)
        (temporary / MANIFEST).write_text(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")
        temporary.rename(self.path(manifest["step"]))
        try:
            self._retire()
        except OSError as error:
            log.warning("saved step %s, but could not remove an older checkpoint: %s", manifest["step"], error)

    def _retire(self) -> None:
        """Removes the checkpoints that are neither among the newest nor among the best."""
        ranked, whole = self._ranked()
        for step in set(whole) - set(whole[-self.keep_last :]) - set(ranked[: self.keep_best]):
            shutil.rmtree(self.path(step).rename(self.folder / f"removing-{step}"))

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
                    scores.append((score if noted.get("higher_is_better", self.higher) else -score, step))
        return [step for _, step in sorted(scores, reverse=True)], whole

    # -- restoring

    def restore(self, abstract: Any, fit: Fit = lambda abstract, shapes: abstract, most: int = sys.maxsize) -> Any:
        """The newest `Restored` up to step `most` that is whole, with the shardings of `abstract`; None if there is
        none at all. `fit` makes `abstract` suit what a checkpoint holds, shapes by path, where that may differ.

        Says aloud which newer ones are broken and how. `Failed` if all are; `Refused` if shapes differ.
        """
        steps = [step for step in first(self.steps)[::-1] if step <= most]
        return self._first_whole(lambda step: self._load(step, abstract, fit), steps)

    def restore_parameters(self, best: bool = False) -> Restored | None:
        """The parameters and batch statistics by path in the newest whole checkpoint, or the best, of any model."""

        def load(step: int) -> Restored:
            noted = self._verify_files(step)
            everywhere = jax.sharding.Mesh(jax.devices(), "all")
            whole = jax.sharding.NamedSharding(everywhere, jax.sharding.PartitionSpec())
            saved = ocp.metadata(str(self.path(step))).metadata
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), saved)
            state = self._read(step, abstract)
            found = leaves(state["params"]) | leaves(state["variables"].get("batch_stats", {}))
            return Restored(step, found, noted["state_sha256"])

        ranked, steps = first(lambda: [self._ranked()[0] if best else [], self.steps()])
        return self._first_whole(load, [*ranked, *(step for step in reversed(steps) if step not in ranked)])

    def set_aside(self, beyond: int) -> None:
        """Moves what is beyond a step, which is broken, to `broken/`, so that its step can be saved again."""

        def move() -> None:
            for step in self.steps():
                if step > beyond:
                    broken = self.folder.parent / "broken"
                    broken.mkdir(exist_ok=True)
                    target = next(path for n in itertools.count() if not (path := broken / f"{step}-{n}").exists())
                    self.path(step).rename(target)
                    log.warning("moved %s to %s", self.path(step), target)

        first(move)

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

        def look() -> tuple[dict[str, Any], str]:
            try:
                manifest = self.manifest(step)
                for name, (size, digest) in manifest["files"].items():
                    file = self.path(step) / name
                    if file.is_symlink() or not file.is_file():
                        return {}, f"misses its file {name}"
                    if file.stat().st_size != size:
                        return {}, f"has {file.stat().st_size} bytes where {size} were saved in its file {name}"
                    if _file_digest(file) != [size, digest]:
                        return {}, f"has changed in its file {name} since it was saved"
            except (Broken, OSError) as broken:
                return {}, str(broken)
            return manifest, ""

        manifest, problem = first(look)
        if problem:
            raise Broken(problem)
        return manifest

    def _read(self, step: int, abstract: Any) -> Any:
        """What Orbax reads; `Broken` on all processes if one of them cannot read it."""
        state, problem = None, ""
        try:
            state = ocp.load(str(self.path(step)), abstract)
        except Exception as error:
            problem = f"cannot be read: {_one_line(error.__cause__ or error)}"
        _raise_together(problem)
        return state

    def _load(self, step: int, abstract: Any, fit: Fit) -> Restored:
        manifest = self._verify_files(step)
        want = _shapes(abstract := fit(abstract, manifest["shapes"]))
        for path in want | manifest["shapes"]:  # Orbax would cast a dtype without a word
            asked, saved = want.get(path, "nothing"), manifest["shapes"].get(path, "nothing")
            if asked != saved:
                raise Refused(
                    f"checkpoint {self.path(step)} holds {path} as {saved}, this experiment as {asked}: run the "
                    f"experiment that saved it, or give another --workdir."
                )
        state = self._read(step, abstract)
        each, whole = digests(state)
        changed = [path for path, digest in manifest["leaves"].items() if each[path] != digest]
        _raise_together(f"has changed in its leaf {changed[0]} since it was saved" if changed else "")
        return Restored(step, state, whole)


def _raise_together(problem: str) -> None:
    """Raises `Broken` on every process if one of them, maybe one alone, has a problem: all restore the same step."""
    for process, said in enumerate(gather(problem)):
        if said:
            raise Broken(f"{said} (seen by process {process})" if jax.process_count() > 1 else said)


def _shapes(state: Any) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves(state).items()}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 400 else f"{text[:150]} ... {text[-250:]}"  # the cause stands last


def _file_digest(file: Path) -> list[Any]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]
