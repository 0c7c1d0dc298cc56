"""`jaxbig bench`: times the training loop, or train steps beside those of other frameworks."""

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxbig.cli.command import Command
from jaxbig.cli.experiment_command import ExperimentCommand
from jaxbig.cli.tables import pairs
from jaxbig.config.options import Flag
from jaxbig.errors import Refused
from jaxbig.tools.benchmark import bench

Rival = Literal["flax", "torch", "torch.compile"]
COMPARE = Path("benchmarks/peers/compare.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench(ExperimentCommand):
    """Seconds a step of the real loop against the bare compiled step; compile time and memory."""

    steps_a_round: int = 50
    """Steps per round; five rounds of each are timed."""
    against: tuple[Rival, ...] = ()
    """Instead, train steps beside those of flax.linen or PyTorch; in place of an experiment come
    cases, gpt or vit, or none for all. See `jaxbig bench --against flax --help`."""

    @classmethod
    def from_arguments(cls, word: str, arguments: Sequence[str], **given: Any) -> Any:
        if any(each.split("=")[0] == "--against" for each in arguments):
            return BenchAgainst.from_arguments(word, arguments)
        return super().from_arguments(word, arguments, **given)

    def __call__(self) -> int:
        result = bench(self.experiment, self.steps_a_round, self.screen())
        return self.emit(result, ("", pairs("measured", result)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchAgainst(Command):
    """Train steps of our models beside small, plain rivals in flax.linen and PyTorch, in turn.

    Both train the same parameters on the same batch, and their losses must agree.
    """

    cases: tyro.conf.Positional[tuple[str, ...]] = ()
    """gpt, convnet, resnet18, lstm, vit, bert, moe; none: all."""
    against: tuple[Rival, ...]
    """The rivals; each is compared by itself."""
    repeats: int = 15
    """Pairs of steps."""
    small: Flag = False
    """Small models, to try the command."""

    def __call__(self) -> int:
        compare = Path(__file__).parents[2] / COMPARE
        if not compare.is_file():
            raise Refused(
                f"--against {' '.join(self.against)}: the rivals are in a checkout of jaxbig, in "
                f"{COMPARE.parent}, which this is not: clone it and "
                f"pip install -e ."
            )
        command = [sys.executable, str(compare), *self.cases, "--against", *self.against]
        command += ["--repeats", str(self.repeats)]
        command += ["--small"] * self.small + ["--json"] * self.json
        # a process of its own: the files there are no package
        return subprocess.run(command, check=False).returncode
