"""Experiments that ship: all are shown and refused without data; one of each objective steps."""

import ast
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.experiments import (
    EMBEDDED,
    EXPERIMENTS,
    one_of_each_kind,
    one_of_each_objective,
    small,
)

from jaxbig.config.discover import load
from jaxbig.config.experiment_files import available, summary
from jaxbig.data.episodes import Episodes
from jaxbig.data.records.csv import Csv
from jaxbig.distributed.mesh import Mesh
from jaxbig.distributed.sharding import device_put_batch
from jaxbig.errors import Refused
from jaxbig.program.program import make_program
from jaxbig.tools.describe import show
from jaxbig.tools.shrink import random_batch
from jaxbig.train.passes import evaluate

QUICK = ["digits_convnet", "pytext_lstm", "pytext_transformer"]
FULL_SIZE = [
    name
    for name in EXPERIMENTS
    if name not in EMBEDDED and not isinstance(load(name).data, Episodes)  # need none
]
PARAMETERS = {
    "imagenet_alexnet": 62_378_344,
    "imagenet_resnet50": 25_557_032,
    "imagenet_convnext_t": 28_589_128,
    "imagenet64_dit_s2": 32_855_820,
    "imagenet_simclr_resnet50": 27_966_656,
    "movielens_two_tower": 1_331_328,
    "criteo_dlrm": 540_679_250,
    "coco_detr_r50": 41_575_324,
    "minatar_breakout_dqn": 132_179,
    "go_9x9_alphazero": 1_249_499,
    "librispeech_conformer": 26_278_173,
    "wikipedia_bert_base": 109_514_298,
    "wmt14_transformer_base": 63_082_496,
    "cnn_dailymail_t5_small": 60_506_624,
    "squad_bert": 108_893_186,
    "c4_gpt2_124m": 124_439_808,
    "c4_llama_1b": 1_100_048_384,
    "c4_llama_7b": 6_738_415_616,
    "c4_llama_70b": 68_976_648_192,
}


@pytest.mark.parametrize(
    "name",
    [
        *PARAMETERS,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in one_of_each_kind([*PARAMETERS, *EXPERIMENTS])
            if name not in PARAMETERS
        ),
    ],
)
def test_it_is_shown_with_all_its_parameters(name: str) -> None:
    shown = show(load(name))
    assert shown["parameters"] == PARAMETERS.get(name, shown["parameters"]) > 0
    assert sum(row["numbers"] for row in shown["table"]) == shown["parameters"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_header_says_what_it_is_and_how_to_run_it(name: str) -> None:
    text = available()[name].read_text()
    assert (
        summary(available()[name]).endswith((".", ":", '"')) or len(summary(available()[name])) > 40
    )
    assert f"jaxbig train {name}" in text and "MEASURE" not in text


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in one_of_each_objective([*QUICK, *EMBEDDED])  # models: test_meshes.py
            if name not in QUICK
        ),
    ],
)
def test_shrunk_it_takes_steps_over_a_mesh_with_one_compilation(name: str) -> None:
    experiment = small(name, mesh=Mesh(data=2, fsdp=2, tensor=2))
    if name not in QUICK and getattr(experiment.model, "depth", 0) == 2:
        experiment = experiment.replace(**{"model.depth": 1})  # the second block is the first again
    program = make_program(experiment)
    with program.activate():
        state = program.init()
        before = jax.tree.map(np.asarray, state.params)
        for step in range(2):
            state, metrics = program.train_step(
                state, device_put_batch(random_batch(experiment, step), program.mesh)
            )
            assert all(np.isfinite(jax.device_get(list(metrics.values()))))
        assert program.train_step._cache_size() == 1
        after = jax.tree.map(np.asarray, state.params)
        assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))

        class Few:
            contiguous = getattr(experiment.data, "contiguous", False)

            def __len__(self) -> int:
                return 24  # one batch and a half

            def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
                rows = random_batch(experiment)
                rows.pop("starts", None)
                return {
                    key: np.concatenate([value, value])[indices % 24] for key, value in rows.items()
                }

        means = evaluate(program, state, Few())
        assert math.isfinite(means["loss"]) and experiment.objective.criterion in means


@pytest.mark.parametrize("name", FULL_SIZE)
def test_without_its_data_it_is_refused_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    experiment = load(name)
    with pytest.raises(Refused) as refused:
        experiment.data.prepare()
    records: Any = experiment.data.records  # type: ignore[attr-defined]
    if isinstance(records, Csv):  # of the user
        assert f"no file matches {records.files}" in str(refused.value)
    else:
        assert "--smoke" in str(refused.value) and records.name in str(refused.value)


def test_every_experiment_that_runs_here_names_what_it_has_to_beat() -> None:
    numbers = r"\d\.\d{3}"  # the score of three seeds or more, and of what they are compared with
    for name in EMBEDDED:
        header = " ".join(
            (ast.get_docstring(ast.parse(available()[name].read_text())) or "").split()
        )
        assert f"jaxbig train {name}" in header and re.search(r"seeds 0 to [2-9]", header), name
        assert len(re.findall(numbers, header)) >= 3 and "baselines.py" in header, name


def test_a_variant_is_its_parent_with_some_fields_replaced() -> None:
    child = load("pymodule_bert")
    parent = load("pytext_bert")
    same = {"vocab", "depth", "width", "heads", "positions", "pre_norm"}
    assert all(getattr(child.model, field) == getattr(parent.model, field) for field in same)
    assert dataclasses.replace(child.mesh) == parent.mesh
