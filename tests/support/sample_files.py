"""Small files of each kind that the documentation reads: pictures, tables, texts, sounds, masks."""

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from support.experiments import ROOT

COUNT = 48
KINDS = ("daisy", "iris", "rose")


def write_all(folder: Path) -> None:
    """Writes one of each into a folder."""
    for write in (pictures, flowers, houses, reviews, notes, tokens, sounds, cells, saved, named):
        write(folder, np.random.default_rng(0))


def pictures(folder: Path, draw: np.random.Generator) -> None:
    for number in range(COUNT):
        pixels = draw.integers(0, 160, (*draw.integers(40, 90, 2), 3), dtype=np.uint8)
        pixels[..., 1 + number % 2] += 90
        file = folder / "pictures" / ("forest", "sea")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)


def flowers(folder: Path, draw: np.random.Generator) -> None:
    lines = ["length,width,kind"]
    for number in range(COUNT):
        kind = number % 3
        width = "" if number == 7 else f"{draw.normal(10 * kind, 1):.3f}"
        lines.append(f"{draw.normal(5 * kind, 1):.3f},{width},{KINDS[kind]}")
    (folder / "flowers.csv").write_text("\n".join(lines) + "\n")


def houses(folder: Path, draw: np.random.Generator) -> None:
    (folder / "houses").mkdir()
    columns = {name: draw.uniform(0, 1, COUNT) for name in ("area", "rooms", "age")}
    columns["price"] = columns["area"] + columns["rooms"] - columns["age"]
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "houses" / "all.parquet")


def reviews(folder: Path, draw: np.random.Generator) -> None:
    words = {"good": "a fine film", "bad": "two hours too long", "mixed": "fine but long"}
    with (folder / "reviews.jsonl").open("w") as lines:
        for number in range(COUNT):
            label = list(words)[number % 3]
            lines.write(json.dumps({"text": f"{words[label]} {number}", "label": label}) + "\n")


def notes(folder: Path, draw: np.random.Generator) -> None:
    (folder / "notes").mkdir()
    for number in range(COUNT):
        text = f"The note of day {number} says that it rained for {draw.integers(9)} hours.\n"
        (folder / "notes" / f"{number}.txt").write_text(text * 3)


def tokens(folder: Path, draw: np.random.Generator) -> None:
    labels = np.arange(COUNT) % 2
    inputs = draw.integers(1, 25, (COUNT, 32)) + 24 * labels[:, None]
    np.savez(folder / "tokens.npz", inputs=inputs.astype(np.int32), label=labels)


def sounds(folder: Path, draw: np.random.Generator) -> None:
    for number in range(COUNT):
        pitch = draw.uniform(200, 400) * (1 + 8 * (number % 2))
        samples = 20_000 * np.sin(2 * np.pi * pitch * np.arange(8_000) / 16_000)
        file = folder / "sounds" / ("dog", "bird")[number % 2] / f"{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(file), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(16_000)
            sound.writeframes(samples.astype("<i2").tobytes())


def cells(folder: Path, draw: np.random.Generator) -> None:
    for part in ("images", "masks"):
        (folder / "cells" / part).mkdir(parents=True)
    for number in range(COUNT):
        mask = draw.integers(0, 3, (16, 16), dtype=np.uint8)
        Image.fromarray(80 * mask).convert("RGB").save(folder / f"cells/images/{number}.png")
        Image.fromarray(mask).save(folder / f"cells/masks/{number}.png")


def saved(folder: Path, draw: np.random.Generator) -> None:
    """What `save_to_disk` of Hugging Face's datasets has written."""
    shutil.copytree(ROOT / "tests" / "golden" / "hugging_face", folder / "saved")


def named(folder: Path, draw: np.random.Generator) -> None:
    (folder / "files").mkdir()
    lines = ["file,label"]
    for number in range(COUNT):
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
            folder / "files" / f"{number}.png"
        )
        lines.append(f"{number}.png,{number % 3}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    objects = [
        {"file": f"{number}.png", "boxes": [[0, 0.25, 0.5, 1]] * (number % 3), "labels": [2, 0]}
        for number in range(COUNT)
    ]
    rows = [
        json.dumps({**each, "labels": each["labels"][: len(each["boxes"])]}) for each in objects
    ]
    (folder / "boxes.jsonl").write_text("\n".join(rows) + "\n")
