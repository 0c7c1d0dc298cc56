"""Checkpoints: the one room that knows Orbax.

A checkpoint is a folder named by its step. Orbax writes it under another name; then a manifest is added, with
the sha256 of every file, and of every leaf as it was on the devices, and the folder is renamed. So a folder
with a step's name was whole once, and whatever has happened to it since is noticed before it is used.
"""

import dataclasses
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxbig.errors import Failed, Refused
from jaxbig.state import digests, leaves

log = logging.getLogger("jaxbig")

MANIFEST = "jaxbig.json"


class Broken(Exception):
    """A checkpoint is not what was saved; says which leaf or file."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state that was verified, and where it is from."""

    step: int
    state: Any
    state_sha256: str
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints in a folder; keeps the newest `keep_last` and the `keep_best` best by a metric."""

    def __init__(
        self,
        folder: Path,
        keep_last: int = 2,
        keep_best: int = 0,
        criterion: str = "loss",
        higher: bool = False,
    ):
        self.folder = folder.absolute()
        self.keep_last, self.keep_best, self.criterion, self.higher = keep_last, keep_best, criterion, higher
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None

    def steps(self) -> list[int]:
        """The steps of all folders (and whatever else) with a step's name, whole or not, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if re.fullmatch(r"\d+", entry.name))

    def clean(self) -> None:
        """Removes what a save or a removal that was killed has left; only for the one run that holds the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for entry in self.folder.iterdir():
            if re.fullmatch(r"(saving|removing)-\d+.*", entry.name):
                shutil.rmtree(entry)

    # -- saving

    def save(self, step: int, state: Any, metrics: dict[str, float]) -> str:
        """Begins to save in the background, once the save before it is done; gives `state_sha256`."""
        self.wait()
        shapes = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves(state).items()}
        each, whole = digests(state)
        manifest = {"step": step, "state_sha256": whole, "metrics": metrics, "shapes": shapes, "leaves": each}
        temporary = self.folder / f"saving-{step}"
        try:
            response = ocp.save_async(temporary, state)
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = step, self._thread.submit(self._commit, response, temporary, step, manifest)
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

    def _failed(self, step: int, error: Exception) -> Failed:
        shutil.rmtree(self.folder / f"saving-{step}", ignore_errors=True)  # gives its room back
        cause = re.sub(r"\s+", " ", str(error))[:300]
        return Failed(
            f"saving step {step} to {self.folder / str(step)} failed: {cause}; "
            f"what was saved before it is untouched: mend it and run the same command again."
        )

    def _commit(self, response: Any, temporary: Path, step: int, manifest: dict[str, Any]) -> None:
        response.result()
        manifest["files"] = {name: _file_digest(temporary / name) for name in _files(temporary)}
        text = json.dumps(manifest, indent=1)
        seal = hashlib.sha256(text.encode()).hexdigest()
        (temporary / MANIFEST).write_text(f"{text}\n{seal}\n")
        temporary.rename(self.folder / str(step))
        self._retire()

    def _retire(self) -> None:
        """Removes the checkpoints that are neither among the newest nor among the best."""
        steps, scores = self.steps(), {}
        for step in steps:
            try:
                score = self.manifest(step)["metrics"].get(self.criterion)
            except Broken:
                return  # a broken one is for the next restore to name; until then nothing is removed
            if score is not None:
                scores[step] = score if self.higher else -score
        best = sorted(scores, key=lambda step: (scores[step], step))[-self.keep_best :] if self.keep_best else []
        for step in set(steps) - set(steps[-self.keep_last :]) - set(best):
            removed = (self.folder / str(step)).rename(self.folder / f"removing-{step}")
            shutil.rmtree(removed)

    # -- restoring

    def manifest(self, step: int) -> dict[str, Any]:
        """What was noted of a checkpoint when it was saved; `Broken` if that cannot be trusted."""
        folder = self.folder / str(step)
        if folder.is_symlink() or not folder.is_dir():
            raise Broken("is no folder (a link or a file), so no save of jaxbig's")
        try:
            text, seal, _ = (folder / MANIFEST).read_text().rsplit("\n", 2)
        except FileNotFoundError:
            raise Broken(f"has no {MANIFEST}, so no save of jaxbig's, or one that lost it") from None
        except (OSError, ValueError) as error:
            raise Broken(f"has an unreadable {MANIFEST}: {error}") from None
        if hashlib.sha256(text.encode()).hexdigest() != seal:
            raise Broken(f"has changed in {MANIFEST} since it was saved")
        return json.loads(text)

    def restore(self, abstract: Any) -> Restored | None:
        """The newest checkpoint that is whole, with the shardings of `abstract`; None if there is none at all.

        Says aloud which newer ones are broken and how. `Failed` if all are; `Refused` if shapes differ.
        """
        return self._newest_whole(lambda step: self._load(step, abstract))

    def restore_parameters(self) -> dict[str, Any] | None:
        """The parameters in the newest whole checkpoint, whatever model they are of: path -> array."""

        def load(step: int) -> dict[str, Any]:
            self._verify_files(step)
            whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            saved = ocp.metadata(self.folder / str(step)).metadata
            abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=whole), saved)
            return leaves(ocp.load(self.folder / str(step), abstract)["params"])  # type: ignore[index]

        return self._newest_whole(load)

    def set_aside(self, newer_than: int) -> None:
        """Moves checkpoints beyond a step, which are broken, to `broken/`, so that their steps can be saved again."""
        for step in [step for step in self.steps() if step > newer_than]:
            target, number = self.folder.parent / "broken" / str(step), 1
            while target.exists() or target.is_symlink():
                target, number = target.with_name(f"{step}-{number}"), number + 1
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
            log.warning("moved checkpoints/%s to broken/%s", step, target.name)

    def _newest_whole(self, load: Callable[[int], Any]) -> Any:
        reasons = []
        for step in reversed(self.steps()):
            try:
                return load(step)
            except Broken as broken:
                reasons.append(f"checkpoint {self.folder / str(step)} {broken}")
                log.warning("%s; trying the one before it", reasons[-1])
        if reasons:
            raise Failed(
                f"none of {len(reasons)} checkpoints can be used, and nothing was deleted: {'; '.join(reasons)}. "
                f"Bring one back, or begin anew in another --workdir."
            )
        return None

    def _verify_files(self, step: int) -> dict[str, Any]:
        manifest, folder = self.manifest(step), self.folder / str(step)
        for name, (size, digest) in manifest["files"].items():
            file = folder / name
            if file.is_symlink() or not file.is_file():
                raise Broken(f"misses its file {name}")
            if file.stat().st_size != size:
                raise Broken(f"has {file.stat().st_size} bytes where {size} were saved in its file {name}")
            if _file_digest(file) != [size, digest]:
                raise Broken(f"has changed in its file {name} since it was saved")
        return manifest

    def _load(self, step: int, abstract: Any) -> Restored:
        manifest = self._verify_files(step)
        want = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves(abstract).items()}
        for path in [*want, *manifest["shapes"]]:
            asked, saved = want.get(path), manifest["shapes"].get(path)
            if asked != saved:  # Orbax would cast a dtype without a word
                raise Refused(
                    f"checkpoint {self.folder / str(step)} holds {path} as {saved or 'nothing'} and this "
                    f"experiment has {asked or 'nothing'}: run the experiment it was saved by, or another --workdir."
                )
        try:
            state: Any = ocp.load(self.folder / str(step), abstract)
        except Exception as error:
            cause = re.sub(r"\s+", " ", str(error.__cause__ or error))[:300]
            raise Broken(f"cannot be read: {cause}") from error
        each, whole = digests(state)
        for path, digest in manifest["leaves"].items():
            if each[path] != digest:
                raise Broken(f"has changed in its leaf {path} since it was saved")
        return Restored(step, state, whole, manifest["metrics"])


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _file_digest(file: Path) -> list[Any]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]
