"""The files besides the weights of a folder: tokenizer, chat template, generation settings."""

import shutil
from pathlib import Path

FOLDER = "pretrained"
"""Where a run's folder keeps them."""
CONFIG = "config.json"
NAMES = (
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_side_files(source: Path, target: Path, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Copies those of the files that there are; returns their names."""
    names = [name for name in NAMES if name not in leave_out and (source / name).is_file()]
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names
