"""Metrics, figures and the console: damaged lines, and failures that do not end a run."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxbig.data.audio import Sounds
from jaxbig.data.builtin.digits import Digits
from jaxbig.data.records.synthetic import Synthetic
from jaxbig.errors import Failed, Refused
from jaxbig.sweep import picture, sweep
from jaxbig.system.json_files import read_json
from jaxbig.tools.inspect_batch import draw
from jaxbig.tracking import metrics_writer as room
from jaxbig.tracking.console import Screen, significant, table
from jaxbig.tracking.figures import optional, printable
from jaxbig.tracking.metrics_writer import MetricsWriter, read_metrics
from jaxbig.train.attention_maps import draw_maps
from jaxbig.train.bad_step_policy import LEFT_OUT, left_out
from jaxbig.train.run_description import read_run

GOOD = {"step": 2, "split": "train", "loss": 0.5}
DAMAGED = {
    "cut off in the midst": b'{"step": 1, "split": "tr',
    "of zeros, as after a power loss": b"\0" * 40,
    "not UTF-8": b'{"step": 1, "split": "\xff\xfe',
    "another program's": b'{"epoch": 1, "loss": 0.5}',
    "an older one's, without a split": b'{"step": 1, "loss": 0.5}',
    "no object": b"[1, 2]",
    "no JSON": b"step 1 loss 0.5",
    "a step that is text": b'{"step": "1", "split": "train", "loss": 0.5}',
    "a value that is text": b'{"step": 1, "split": "train", "loss": "0.5"}',
    "nested by thousands": b"[" * 100_000,
}


@pytest.fixture
def warned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("jaxbig"), "propagate", True)
    return caplog


def lines(*each: bytes) -> bytes:
    return b"".join(line + b"\n" for line in each)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_named_and_the_run_is_not_lost(
    kind: str, tmp_path: Path, warned: pytest.LogCaptureFixture
) -> None:
    whole = lines(
        json.dumps(GOOD).encode(), DAMAGED[kind], json.dumps({**GOOD, "step": 4}).encode()
    )
    (tmp_path / "metrics.jsonl").write_bytes(whole)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4]
    assert "metrics.jsonl: line 2 cannot be read and is left out" in warned.text
    MetricsWriter(tmp_path, 4).close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4]
    assert (tmp_path / "broken" / "metrics-0.jsonl").read_bytes() == whole  # and nothing is lost
    warned.clear()
    MetricsWriter(tmp_path, 4).close()
    assert not warned.text and len(list((tmp_path / "broken").iterdir())) == 1


def test_a_last_line_that_a_kill_cut_off_is_no_damage(
    tmp_path: Path, warned: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(lines(json.dumps(GOOD).encode()) + b'{"step": 3, "sp')
    assert read_metrics(tmp_path) == [GOOD] and not warned.text


@pytest.mark.parametrize("content", [b"", b"\0\0", b"{", b"[]", b"3", b"\xff", b"null"])
@pytest.mark.parametrize("file", ["run.json", "sweep.json", "left_out.json"])
def test_a_file_of_json_that_is_damaged_is_a_sentence(
    file: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(content)
    if file == LEFT_OUT and content == b"[]":
        assert left_out(tmp_path) == []
        return
    with pytest.raises(Refused, match=rf"{tmp_path}/{file}.*"):
        if file == "run.json":
            read_run(tmp_path)
        elif file == "sweep.json":
            sweep.Sweep(tmp_path, "digits_convnet", [], [{"seed": 1}])
        else:
            left_out(tmp_path)


def test_an_empty_run_json_is_named_with_the_way_to_resume(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("")
    with pytest.raises(
        Refused, match=r"it is empty, as after a power loss; restore a copy .*--adopt"
    ):
        read_run(tmp_path)
    assert read_run(tmp_path, adopt=True) is None
    (tmp_path / "run.json").write_text('{"experiment": {}, "data_identity": "x"}')
    assert read_run(tmp_path, adopt=True) == {
        "experiment": {},
        "data_identity": "x",
    }  # what is there still counts


@pytest.mark.parametrize("at", ["import", "begin", "write", "close"])
def test_a_tensorboard_that_fails_ends_no_run(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: pytest.LogCaptureFixture
) -> None:
    class Board:
        def __init__(self, folder: Path, start: int):
            if at == "import":
                raise ImportError("protobuf")
            self.fails("begin")

        def fails(self, here: str) -> None:
            if at == here:
                raise OSError(28, "No space left on device")

        def write(self, step: int, split: str, values: dict[str, float]) -> None:
            self.fails("write")

        def close(self) -> None:
            self.fails("close")

    monkeypatch.setattr(room, "TensorBoardWriter", Board)
    metrics = MetricsWriter(tmp_path, 0)
    for step in (1, 2):
        metrics.write(step, "train", {"loss": 0.5})
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert warned.text.count("TensorBoard") == 1 and "the run continues" in warned.text


def test_metrics_that_cannot_be_written_are_the_run_s_own_failure(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises((Failed, OSError)):
        MetricsWriter(tmp_path, 0)


SHOWN: dict[str, tuple[Any, ...]] = {
    "say": ("text",),
    "start": (0, 10),
    "train": (1, {"loss": 1.0, "learning_rate": 0.1, "steps_per_second": 1.0}),
    "evaluation": (1, {"loss": 1.0}),
    "result": (
        "title",
        {"metrics": {}, "best": None, "step": 1, "state_sha256": "x"},
        Path("run"),
        ["next"],
    ),
    "stop": (),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_screen_that_fails_ends_no_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()

    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(screen, "console", Gone())
    monkeypatch.setattr(screen, "_progress", Gone() if name == "stop" else None)
    getattr(screen, name)(*SHOWN[name])


def test_what_only_shows_a_run_logs_its_error_and_ctrl_c_passes(
    warned: pytest.LogCaptureFixture,
) -> None:
    with optional("no picture a.png"):
        raise ValueError("ParseException: \udcff")
    assert "no picture a.png: ValueError: ParseException: \ufffd; the run continues" in warned.text
    with pytest.raises(KeyboardInterrupt), optional("x"):
        raise KeyboardInterrupt


NAMES = ["$10_$20", "$x", r"a\b{", "caf\udce9", "line\nbreak", "\0", "日本", "%", "", "x" * 200]


class Named:
    names = NAMES
    classes = len(NAMES)

    def words(self, tokens: np.ndarray) -> list[str]:
        return [NAMES[token % len(NAMES)] for token in tokens.tolist()]


def test_pictures_take_any_name(tmp_path: Path) -> None:
    """Class names and tokens may hold mathtext, control characters, bytes that are not UTF-8."""
    rows: Any = {"inputs": np.arange(20).reshape(2, 10), "targets": np.arange(20).reshape(2, 10)}
    data = Named()
    everywhere = np.ones((2, 10))
    images: Any = {"inputs": np.zeros((10, 4, 4, 3)), "targets": np.arange(10), "mask": np.ones(10)}
    runs = [
        {
            "number": i,
            "setting": {"a.b": name},
            "best": 0.1 * i,
            "best_step": 1,
            "folder": str(i),
            "state": "done",
        }
        for i, name in enumerate(NAMES)
    ]
    result = {"ranked": list(range(len(NAMES))), "runs": runs, "criterion": "loss"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font may lack a glyph
        weights = np.ones((2, 10, 10), np.float32)
        masked = {**rows, "mask": everywhere}
        file = tmp_path / "maps.png"
        answers = rows["targets"]
        draw_maps(weights, masked, data, answers=answers, file=file)  # type: ignore[arg-type]
        draw(images, data, tmp_path / "images.png")  # type: ignore[arg-type]
        assert picture.draw(result, tmp_path / "sweep.png")
    for name in ("maps", "images", "sweep"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 100


@pytest.mark.parametrize("right", [True, False])
def test_answers_are_beside_their_targets_and_red_where_wrong(tmp_path: Path, right: bool) -> None:
    rows: Any = {"inputs": np.arange(10)[None], "targets": np.arange(10)[None]}
    rows["mask"] = np.ones((1, 10))
    weights = np.ones((1, 10, 10), np.float32)
    answers = rows["targets"] if right else rows["targets"][:, ::-1]
    data: Any = Digits(batch=1)
    draw_maps(weights, rows, data, answers=answers, file=tmp_path / "maps.png")
    red, green, _ = np.moveaxis(np.asarray(Image.open(tmp_path / "maps.png").convert("RGB")), -1, 0)
    assert (red.astype(int) - green > 100).any() == (not right)


def test_a_spectrogram_is_drawn_with_low_bands_at_the_bottom_and_time_across(
    tmp_path: Path,
) -> None:
    sounds = np.zeros((1, 20, 8, 1))
    sounds[:, :10, 0] = 1  # the lowest band, in the first half of the time
    data = Sounds(records=Synthetic(), classes=2, batch=1)
    batch = {"inputs": sounds, "targets": np.zeros(1, int), "mask": np.ones(1)}
    draw(batch, data, tmp_path / "sounds.png")
    pixels = np.asarray(Image.open(tmp_path / "sounds.png").convert("L"))
    dark = pixels < 5  # most of the panel, and little else
    panel = pixels[dark.mean(1) > 0.2][:, dark.mean(0) > 0.4]
    height, width = panel.shape
    bright = panel > 200
    assert bright[-height // 16, : width // 3].all()
    assert not bright[: height // 2].any() and not bright[:, -width // 3 :].any()


def test_a_sweep_s_picture_that_cannot_be_written_ends_no_sweep(
    tmp_path: Path, warned: Any
) -> None:
    run = {"number": 0, "setting": {"a": 1}, "best": 0.1, "folder": "000"}
    assert not picture.draw(
        {"ranked": [0], "runs": [run], "criterion": "loss"}, tmp_path / "nowhere" / "sweep.png"
    )
    assert "no picture" in warned.text


def test_text_of_files_is_printable() -> None:
    assert printable("caf\udce9\n\0é 日$") == "caf\ufffd\ufffd\ufffdé 日$"


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": NaN}')
    assert list(read_json(tmp_path / "a.json")) == ["a"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0000123, "1.230e-05"),
        (0.02203, "0.02203"),
        (0.99722, "0.9972"),
        (1.0, "1.000"),
        (1234.5, "1234"),
        (2.5e7, "2.500e+07"),
        (float("nan"), "nan"),
    ],
)
def test_a_number_is_shown_with_four_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_evaluations_are_a_table_with_a_column_as_wide_as_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = Screen()
    screen.evaluation(100, {"loss": 0.00004, "calibration_error": 0.5})
    screen.evaluation(2000, {"loss": 12.0, "calibration_error": 0.25})
    assert capsys.readouterr().out.splitlines() == [
        "evaluated at       loss  calibration_error",
        "         100  4.000e-05             0.5000",
        "        2000      12.00             0.2500",
    ]


def test_a_line_of_training_spells_out_the_learning_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = Screen()
    screen.start(0, 20)
    screen.train(10, {"loss": 0.00004, "learning_rate": 1e-3, "steps_per_second": 5.0})
    line = "step 10/20  loss 4.000e-05  learning rate 1.0e-03  5.0 steps/s  2 s left\n"
    assert capsys.readouterr().out == line


def test_numbers_of_a_printed_table_are_aligned_right(capsys: pytest.CaptureFixture[str]) -> None:
    table([{"a": "x", "score": "0.5"}, {"a": "y", "score": "-"}, {"a": "z", "score": "1,000"}])
    assert [line.rstrip()[-6:] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "   0.5",
        "     -",
        " 1,000",
    ]
