"""Exported models: StableHLO that jax alone runs, and parameters by path."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax.traverse_util import unflatten_dict
from support.experiments import small

import jaxbig as jb
from jaxbig.inference import parameter_files, stablehlo, stablehlo_loader
from jaxbig.models.base import replaced
from jaxbig.program.program import make_program

# conv nets with and without batch statistics, an RNN, one with a memory, Transformers, experts
KINDS = ["pytext_lstm"]
MORE_KINDS = ["digits_convnet", "digits_resnet", "digits_vit", "digits_rnn"]
MORE_KINDS += ["pymodule_bert", "pytext_moe", "pytext_griffin", "pytext_deltanet", "pytext_llama"]
UMASK = os.umask(0)
os.umask(UMASK)
WITHOUT_JAXBIG = """
import sys
sys.modules.update(dict.fromkeys(["jaxbig", "flax", "optax", "orbax", "safetensors"]))
import numpy as np, predict
fields = {name: field for name, field in np.load(sys.argv[1]).items()}
np.save(sys.argv[2], predict.load()(**fields))
"""


class Scaled(nn.Module):
    """Reads the size of the batch as a Python number."""

    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


def untrained(experiment: jb.Experiment, folder: Path) -> jb.Run:
    """A run that has made no step."""
    program = make_program(experiment)
    with program.activate():
        state = program.init()
    return jb.Run(
        directory=folder,
        experiment=experiment,
        step=0,
        state=state,
        metrics={},
        history=[],
        program=program,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    model = jb.models.ResNet(stages=(1,), width=8, bottleneck=False, stem="small", classes=10)
    return untrained(small("digits_resnet", model=model), tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_KINDS)]
)
def test_stablehlo_of_any_batch_size_gives_the_run_s_outputs(name: str, tmp_path: Path) -> None:
    experiment = small(name)
    run = untrained(experiment.replace(model=replaced(experiment.model, {"depth": 1})), tmp_path)
    described = stablehlo.export_stablehlo(run, tmp_path / "out")
    rows = stablehlo.sample(run.experiment.data, 5)
    assert "[batch, " in described["inputs"]["inputs"]
    outputs = stablehlo_loader.load(tmp_path / "out")(**rows)
    np.testing.assert_allclose(outputs, jb.apply(run, rows), rtol=1e-4, atol=1e-5)
    assert described["largest_difference"] < 1e-4


@pytest.mark.slow
def test_exported_folder_runs_in_a_process_without_jaxbig(run: jb.Run, tmp_path: Path) -> None:
    stablehlo.export_stablehlo(run, tmp_path / "out")
    rows = stablehlo.sample(run.experiment.data, 3)
    np.savez(tmp_path / "rows.npz", inputs=rows["inputs"])
    command = [sys.executable, "-c", WITHOUT_JAXBIG, tmp_path / "rows.npz", tmp_path / "out.npy"]
    subprocess.run(command, cwd=tmp_path / "out", check=True)
    expected = jb.apply(run, rows)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-4, atol=1e-5)
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, moved / "predict.py"], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("largest difference from the outputs in example.npz: ")


def test_export_states_inputs_and_outputs_and_runs_with_batch_statistics(
    run: jb.Run, tmp_path: Path
) -> None:
    stablehlo.export_stablehlo(run, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        *("model.stablehlo", "parameters.npz", "model.json", "example.npz"),
        *("predict.py", "README.md"),
    }
    described = json.loads((tmp_path / "out/model.json").read_text())
    assert described["inputs"] == {"inputs": {"shape": "batch, 8, 8, 1", "dtype": "float32"}}
    assert described["outputs"] == {"outputs": {"shape": "batch, 10", "dtype": "float32"}}
    text = (tmp_path / "out/README.md").read_text()
    assert "- `inputs`: float32 [batch, 8, 8, 1]" in text and "model(inputs)" in text
    rows = stablehlo.sample(run.experiment.data, 5)
    outputs = stablehlo_loader.load(tmp_path / "out")(rows["inputs"])
    np.testing.assert_allclose(outputs, jb.apply(run, rows), rtol=1e-4, atol=1e-5)


def test_loaded_model_names_the_fields_that_it_needs(run: jb.Run, tmp_path: Path) -> None:
    stablehlo.export_stablehlo(run, tmp_path / "out")
    model = stablehlo_loader.load(tmp_path / "out")
    with pytest.raises(ValueError, match="give inputs, not inputs, lengths"):
        model(inputs=np.zeros([1, 8, 8, 1]), lengths=np.ones(1))


def test_model_that_reads_the_batch_s_size_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    run = untrained(small("digits_convnet", model=Scaled()), tmp_path)
    with pytest.raises(jb.Refused, match=r"Scaled cannot be exported .*x\.shape\[0\]"):
        stablehlo.export_stablehlo(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_model_that_computes_something_else_is_no_export(
    run: jb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_stored = stablehlo.as_stored
    monkeypatch.setattr(stablehlo, "as_stored", lambda array: as_stored(array) + 1)
    with pytest.raises(jb.Failed, match="outputs differ from the run's by up to"):
        stablehlo.export_stablehlo(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_parameters_are_stored_without_loss(run: jb.Run, tmp_path: Path) -> None:
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), run.state.params)
    params = stablehlo.as_stored(np.asarray(half["head"]["kernel"]))
    assert params.dtype == np.float32
    np.testing.assert_array_equal(params, np.float32(half["head"]["kernel"]))


def test_safetensors_have_each_leaf_by_path_and_the_model_s_fields(
    run: jb.Run, tmp_path: Path
) -> None:
    written = parameter_files.export_parameters(run, tmp_path / "out")
    arrays = safetensors.numpy.load_file(written["file"])
    variables = unflatten_dict({tuple(path.split("/")): each for path, each in arrays.items()})
    rows = np.ones([2, 8, 8, 1], np.float32)
    outputs: Any = run.experiment.model.apply(variables, rows)
    np.testing.assert_allclose(outputs, jb.apply(run, rows), rtol=1e-5, atol=1e-6)
    assert Path(written["file"]).stat().st_mode & 0o777 == 0o666 & ~UMASK
    kernel = np.asarray(run.state.params["head"]["kernel"])
    assert arrays["params/head/kernel"].tobytes() == kernel.tobytes()
    assert "batch_stats/stem/norm/mean" in arrays
    assert written["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    with safetensors.safe_open(written["file"], "numpy") as file:
        assert json.loads(file.metadata()["model"])["type"] == "ResNet"


def test_memory_of_a_recurrent_model_is_not_exported(tmp_path: Path) -> None:
    run = untrained(small("pytext_lstm"), tmp_path)
    assert "carry" in run.state.variables
    assert not any(path.startswith("carry") for path in parameter_files.model_arrays(run))


def test_folder_that_is_not_empty_is_refused_and_stays(run: jb.Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(jb.Refused, match="out is there already: give a new or an empty folder"):
        parameter_files.export_parameters(run, tmp_path / "out")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


def test_file_that_reads_differently_is_no_export(
    run: jb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = safetensors.numpy.load_file

    def changed(file: Path) -> dict[str, np.ndarray]:
        arrays = read(file)
        arrays["params/head/bias"] = arrays["params/head/bias"] + 1
        return arrays

    monkeypatch.setattr(safetensors.numpy, "load_file", changed)
    with pytest.raises(jb.Failed, match="reads differently from what was written, at params/head"):
        parameter_files.export_parameters(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
