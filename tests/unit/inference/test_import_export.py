"""Runs from folders of pretrained weights and back: whole, or nothing is written."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.experiments import small

import jaxbig as jb
from jaxbig.arrays.tree import flatten_with_paths
from jaxbig.checkpoint.digest import digests
from jaxbig.cli.main import run as command
from jaxbig.config.experiment import Experiment
from jaxbig.distributed.mesh import Mesh
from jaxbig.errors import Failed, Refused
from jaxbig.inference import export as exporting
from jaxbig.pretrained.family import class_names, numbered_classes
from jaxbig.pretrained.load import open_pretrained
from jaxbig.pretrained.weight_files import SINGLE
from jaxbig.program.program import make_program
from jaxbig.train.dry_run import dry_run
from jaxbig.train.pretrained_state import pretrained_state

pytestmark = pytest.mark.usefixtures("shared_programs")
GPT2 = {
    "depth": 1,
    "width": 16,
    "heads": 2,
    "mlp_width": 24,
    "positions": "learned",
    "max_length": 32,
    "tie_embeddings": True,
}


def experiment(**changes: Any) -> Experiment:
    made = small("pytext_transformer", steps=2, evaluate_every=2, checkpoint_every=2)
    model: Any = made.model
    return made.replace(model=model.clone(**GPT2), evaluate_batches=1, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> jb.Run:
    """A run of two steps."""
    return jb.fit(experiment(), tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture(scope="module")
def folder(trained: jb.Run) -> Path:
    """Its weights as Hugging Face has them."""
    target = trained.directory.with_name("folder")
    jb.export(trained, target)
    return target


def digest(run: jb.Run) -> str:
    return digests(run.state.params)[1]


def test_exported_and_imported_weights_have_the_same_digest_and_logits(
    trained: jb.Run, folder: Path, tmp_path: Path
) -> None:
    run = jb.import_pretrained(folder, tmp_path / "run", experiment(seed=5))
    assert run.step == 0 and digest(run) == digest(trained)
    again = jb.restore(tmp_path / "run")
    assert digest(again) == digest(trained)
    texts = np.arange(64).reshape(2, 32) % 256
    np.testing.assert_array_equal(jb.apply(again, texts), jb.apply(trained, texts))
    jb.export(tmp_path / "run", tmp_path / "again")
    assert (tmp_path / "again" / SINGLE).read_bytes() == (folder / SINGLE).read_bytes()


@pytest.mark.slow
def test_training_continues_from_an_imported_run(folder: Path, tmp_path: Path) -> None:
    jb.import_pretrained(folder, tmp_path / "a", experiment())
    imported = jb.fit(experiment(), tmp_path / "a")
    source = jb.InitializeFrom(huggingface=str(folder))
    read = jb.fit(experiment(initialize_from=source), tmp_path / "b")
    assert imported.step == read.step == 2
    assert digests(imported.state)[1] == digests(read.state)[1]
    described = json.loads((tmp_path / "b" / "run.json").read_text())
    assert described["weights"]["step"] == 0
    assert (tmp_path / "b" / "pretrained" / "config.json").exists()


@pytest.mark.slow
def test_weights_are_the_same_over_a_mesh(trained: jb.Run, folder: Path, tmp_path: Path) -> None:
    split = experiment(mesh=Mesh(data=2, fsdp=2, tensor=2))
    run = jb.import_pretrained(folder, tmp_path / "run", split)
    assert digest(run) == digest(trained)
    up = run.state.params["blocks"]["block_0"]["up"]["kernel"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(8, 12)}


def test_pattern_takes_only_some_weights(trained: jb.Run, folder: Path, tmp_path: Path) -> None:
    source = jb.InitializeFrom(huggingface=str(folder), pattern="^tokens")
    program = make_program(experiment(seed=1))
    with program.activate():
        state, fresh = pretrained_state(program, open_pretrained(folder), pattern=source.pattern)
        first = flatten_with_paths(program.init())
    assert "tokens/embedding" not in fresh and "positions/embedding" in fresh
    given = flatten_with_paths(trained.state)
    for path, leaf in flatten_with_paths(state).items():
        expected = given if path == "params/tokens/embedding" else first
        np.testing.assert_array_equal(leaf, expected[path])


def test_other_model_is_refused_with_every_difference_and_nothing_is_written(
    folder: Path, tmp_path: Path
) -> None:
    other: Any = experiment()
    other = other.replace(model=other.model.clone(depth=2, width=32))
    with pytest.raises(Refused, match="another model") as error:
        jb.import_pretrained(folder, tmp_path / "run", other)
    assert "depth: 1 there, 2 here" in str(error.value)
    assert "width: 16 there, 32 here" in str(error.value)
    assert "take them with --take-fields" in str(error.value)
    source = jb.InitializeFrom(huggingface=str(folder))
    with pytest.raises(Refused, match="depth: 1 there, 2 here"):
        jb.fit(other.replace(initialize_from=source), tmp_path / "run")
    with pytest.raises(Refused, match="depth: 1 there, 2 here"):
        dry_run(other.replace(initialize_from=source), tmp_path / "run")
    found = dry_run(experiment(initialize_from=source), tmp_path / "run")
    assert found["start"] == f"from step 0, with the weights of {folder}"
    assert not list(tmp_path.glob("run/checkpoints/*"))
    run = jb.import_pretrained(folder, tmp_path / "taken", other, take_fields=True)
    assert run.experiment.model == experiment().model


@pytest.mark.parametrize("what", ["weights", "tokens"])
def test_folder_that_is_wrong_leaves_nothing_behind(
    folder: Path, tmp_path: Path, what: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", SINGLE):
        (broken / name).write_bytes((folder / name).read_bytes())
    if what == "weights":
        (broken / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-1])
    else:
        vocab = {chr(200 + number): number for number in range(256)}
        (broken / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    with pytest.raises(Refused, match={"weights": "no whole", "tokens": "has others"}[what]):
        jb.import_pretrained(broken, tmp_path / "run", experiment())
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_export_that_reads_differently_fails_and_leaves_nothing(
    trained: jb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting.write_tensors

    def damage(folder: Path, *arguments: Any, **named: Any) -> None:
        write(folder, *arguments, **named)
        content = bytearray((folder / SINGLE).read_bytes())
        content[-1] ^= 1
        (folder / SINGLE).write_bytes(content)

    monkeypatch.setattr(exporting, "write_tensors", damage)
    with pytest.raises(Failed, match="is not what was written"):
        jb.export(trained, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_export_has_averages_and_merged_adapters_as_an_evaluation_uses_them(tmp_path: Path) -> None:
    run = jb.fit(experiment(**{"ema": 0.9, "lora.rank": 2}), tmp_path / "run")
    jb.export(run, tmp_path / "out")
    written = load_file(tmp_path / "out" / SINGLE)["transformer.h.0.mlp.c_fc.weight"]
    used = run.variables["params"]["blocks"]["block_0"]["up"]["kernel"]
    np.testing.assert_array_equal(written, used)


def test_export_of_a_model_that_hugging_face_has_not_names_what_each_family_misses(
    tmp_path: Path,
) -> None:
    with pytest.raises(Refused, match="of no family"):
        exporting.family_of_model(jb.load("digits_rnn").model)
    with pytest.raises(Refused, match="it must be one of"):
        jb.export("runs/none", tmp_path / "folder", format="onnx")  # type: ignore[arg-type]


def test_printed_command_names_the_folder(
    folder: Path, trained: jb.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["import", str(folder), "--into=pytext_transformer", "--seed", "3"],
        ["export", str(trained.directory), "out", "--format", "safetensors"],
    ):
        printed = [words]
        for _ in range(2):  # what is printed prints itself
            with pytest.raises(SystemExit):
                command([*printed[-1], "--print-command"])
            printed.append(shlex.split(capsys.readouterr().out)[1:])
        assert printed[1][: 2 + (words[0] == "export")] == words[: 2 + (words[0] == "export")]
        assert printed[1] == printed[2]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["import", "gpt2", "--nothing", "1"], "import FOLDER --into pytext_transformer --help"),
        (["export", "digits_rnn", "out", "--nothing"], "export digits_rnn FOLDER --help"),
    ],
)
def test_wrong_option_is_answered_with_a_command_that_runs(words: list[str], hint: str) -> None:
    with pytest.raises(Refused, match=f"`jaxbig {hint}` lists all options"):
        command(words)


@pytest.mark.slow
def test_commands_import_and_export(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    words = ["import", str(folder), "--into", "pytext_transformer", "--take-fields"]
    assert command([*words, "--data.length", "32", "--workdir", run]) == 0
    assert command(["export", run, str(tmp_path / "out"), "--json"]) == 0
    said = capsys.readouterr().out
    result = json.loads(said[said.index("{") :])
    assert result["family"] == "gpt2" and result["step"] == 0
    assert (tmp_path / "out" / SINGLE).read_bytes() == (folder / SINGLE).read_bytes()
    for wrong, message in (
        (["import"], "needs a folder first"),
        (["import", str(folder)], "give --into EXPERIMENT"),
        (["import", "nowhere", "--into", "pytext_transformer"], "nowhere is no folder"),
        (["export", run], "needs the folder to write second"),
        (["export", run, str(tmp_path / "out")], "is there already"),
    ):
        with pytest.raises(Refused, match=message):
            command(wrong)


class Named:
    """Data whose classes have names."""

    names = ("cat", "dog")


@pytest.mark.parametrize(
    ("added", "before", "data", "expected"),
    [
        (numbered_classes(2), {}, Named(), class_names(("cat", "dog"))),
        (numbered_classes(2), {"id2label": {"1": "b", "0": "a"}}, None, class_names(("a", "b"))),
        (numbered_classes(3), class_names(("a", "b")), Named(), {}),
        ({"num_classes": 2}, {}, Named(), {"label_names": ["cat", "dog"]}),
        ({"num_classes": 3}, {}, Named(), {}),
    ],
    ids=["data", "folder", "other numbers", "timm", "timm, another number"],
)
def test_classes_of_an_export_are_named_by_the_data_or_the_folder_before(
    added: Any, before: Any, data: Any, expected: Any
) -> None:
    assert exporting.named_classes(added, before, data) == expected
