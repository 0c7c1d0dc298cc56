"""A user's model and data with field names of their own: shrunk, smoked, checked and planned."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import pytest
from support import own_model
from support.compiling import HASTY
from support.own_model import Tower, config, resized

from jaxbig.config.overrides import resolve
from jaxbig.cost.flops import model_flops
from jaxbig.cost.hardware import parse_topology
from jaxbig.cost.out_of_memory import suggestions
from jaxbig.cost.remedies import remedies
from jaxbig.data.core.dataset import Data, Source, Spec
from jaxbig.distributed.mesh import Mesh
from jaxbig.planning import search
from jaxbig.program.program import Program, make_program
from jaxbig.tools.check_sharding import check
from jaxbig.tools.shrink import PARAMETERS, fewer, narrow_program, small_program
from jaxbig.tools.smoke_test import smoke

FILE = str(Path(own_model.__file__))
SPLIT = Mesh(data=2, tensor=2)


def count(program: Program) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params))


def test_own_model_is_shrunk() -> None:
    whole = make_program(config(), jax.devices())
    program = small_program(config(), jax.devices(), 8)
    model: Any = program.experiment.model
    assert (model.blocks, model.units) == (3, 2048)
    assert count(program) <= PARAMETERS < count(whole)


def test_model_that_cannot_be_narrower_ends_the_search() -> None:
    program = narrow_program(resized(units=2, blocks=1), jax.devices(), 1)
    model: Any = program.experiment.model
    assert model.units == 1


def test_smoke_test_shrinks_own_model() -> None:
    model: Any = smoke(resized(units=2048)).model
    assert (model.blocks, model.units) == (2, 512)


@pytest.mark.slow
def test_smoke_command_trains_a_shrunken_own_model(
    jaxbig: Callable[..., Any], tmp_path: Path
) -> None:
    done = jaxbig("train", FILE, "--smoke", "--json", **HASTY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 2
    run = json.loads((tmp_path / "runs" / "own_model-smoke" / "run.json").read_text())
    model = run["experiment"]["model"]
    assert (model["blocks"], model["units"]) == (2, 512)


@pytest.mark.slow
def test_own_model_is_checked_in_float64() -> None:
    result = check(dataclasses.replace(resized(units=32), mesh=SPLIT))
    assert (result["dtype"], result["tolerance"], result["ok"]) == ("float64", 1e-8, True)
    assert result["gradient_relative_error"] < 1e-13
    assert any("model.blocks" in line for line in result["changed"])


class OnlyFloat32(Tower):
    """A model that cannot compute in float64."""

    def with_dtype(self, dtype: str) -> Self | None:
        return None if dtype == "float64" else super().with_dtype(dtype)


def test_own_model_without_float64_is_checked_in_float32() -> None:
    model = OnlyFloat32(units=32, blocks=1)  # whose own dtype, bfloat16, would not pass
    result = check(dataclasses.replace(config(), model=model, mesh=SPLIT))
    assert (result["dtype"], result["tolerance"], result["ok"]) == ("float32", 1e-4, True)


def test_remedies_begin_with_own_recomputation() -> None:
    found = list(remedies(config(), 8))
    assert found[:2] == [["--model.recompute"], ["--model.recompute", "--accumulate=2"]]
    assert ["--model.recompute"] not in list(remedies(resized(recompute=True), 8))
    model: Any = resolve(FILE, found[0]).model
    assert model.recompute
    program = make_program(resized(units=32), jax.devices())
    assert suggestions(program, prefer_sharding=False)[0] == "--model.recompute"


def test_search_tries_own_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def compile_in_child(command: list[str], *_: Any) -> dict[str, Any]:
        tried.append(resolve(FILE, command[1:]).model)
        memory = {"peak_bytes": 1}
        return {"step_seconds": 1.0, "fits": True, "batch": 1, "memory": memory, "mesh": {}}

    monkeypatch.setattr(search, "compile_in_child", compile_in_child)
    pod = parse_topology("h100:8")
    found = search.search(["plan"], resized(recompute=True), pod, 60, 500, lambda line: None)
    assert tried[0].recompute  # the experiment's own policy is the first
    assert {model.recompute for model in tried} == {False, True}
    assert {plan["remat"] for plan in found} == {"False", "True"}


def test_model_flops_leave_out_own_recomputation() -> None:
    flops = []
    for recompute in (False, True):
        experiment = resized(units=32, recompute=recompute)
        flops.append(model_flops(experiment, make_program(experiment, jax.devices())))
    assert flops[0] == flops[1] > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series(Data):
    """Rows of `hours` numbers."""

    hours: int = 500

    def spec(self) -> Spec:
        return {"inputs": jax.ShapeDtypeStruct((self.batch, self.hours), np.float32)}

    def prepare(self) -> str:
        return "none"

    def source(self, split: str) -> Source:
        raise NotImplementedError

    def shorter(self, length: int) -> Self:
        return dataclasses.replace(self, hours=min(self.hours, length))


def test_own_data_is_cut_by_its_method() -> None:
    experiment = dataclasses.replace(config(), data=Series(batch=64))
    mesh = {"data": 2, "fsdp": 1, "expert": 1, "sequence": 5, "stage": 1}
    data: Any = fewer(experiment, mesh, 8).data
    assert (data.batch, data.hours) == (8, 35)  # 32, up to a multiple of `sequence`
