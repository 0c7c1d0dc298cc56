"""Decides whether two experiments are the same run: which fields may change when it resumes."""

import hashlib
import json
from typing import Any

from jaxbig.config.lora import LoRA
from jaxbig.config.serialize import to_json

FREE = (
    "mesh",
    "steps",  # a schedule follows the new length
    "accumulate",
    "deterministic",
    "offload",
    "guard",
    "callbacks",
    "metrics",
    "evaluators",
    "log_every",
    "evaluate_every",
    "evaluate_batches",
    "patience",
    "checkpoint_every",
    "keep_last",
    "keep_best",
    "keep_every",
    "keep_hours",
    "keep_gb",
    "reader_threads",
    "workers",
    "read_ahead",
)
"""The fields of an experiment that may change when a run is resumed."""
ADDED_LATER = {
    "attention_scale": None,
    "attention_soft_cap": None,
    "callbacks": [],
    "class_token": None,
    "clip_value": None,
    "compute": "dtype",
    "ema": 0.0,
    "evaluators": [],
    "expert_dispatch": "gather",
    "head_epsilon": 1e-6,
    "head_width": None,
    "huggingface": "",
    "layer_decay": 1.0,
    "joint_key_value": True,
    "later": [],
    "layer_scale": None,
    "logit_soft_cap": None,
    "lora": to_json(LoRA()),
    "metrics": [],
    "microbatches": 0,
    "mlp_bias": None,
    "norm_after_pooling": False,
    "patience": 0,
    "qk_norm": False,
    "qkv_bias": None,
    "rotary_scaling": {"type": "RotaryScaling"},
    "sandwich_norm": False,
    "scale_logits": False,
    "shortcut": "strided",
    "start_token": False,
    "stride_first": False,
    "splash_block": 1024,
    "splash_fused": False,
    "test_share": 0.0,
    "token_position": True,
    "train_examples": 1437,
    "weigh_hidden": False,
    "window_pattern": [True],
}
"""Fields that runs before them do not have, with their defaults, at which they change nothing."""
FREE_OF_DATA = ("skip_bad_records",)  # a batch is the same, however many more may be left out


def identity(experiment: Any, data_identity: str) -> dict[str, Any]:
    """The part of an experiment's JSON that must not change when a run is resumed: seed, model,
    ..."""
    fixed = {name: value for name, value in experiment.items() if name not in FREE}
    fixed["data"] = {
        name: value for name, value in fixed.get("data", {}).items() if name not in FREE_OF_DATA
    }
    return {**without_added(fixed), "data_identity": data_identity}


def without_added(value: Any) -> Any:
    """JSON without the fields of `ADDED_LATER` that have their defaults, at any depth."""
    if isinstance(value, list):
        return [without_added(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        name: item
        for name, item in value.items()
        if name not in ADDED_LATER or item != ADDED_LATER[name]
    }
    return {name: without_added(item) for name, item in kept.items()}


def fingerprint(identity: dict[str, Any]) -> str:
    """A digest of `identity`; a run resumes only a checkpoint of the same fingerprint."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def diff(old: Any, new: Any, path: str = "") -> list[str]:
    """The differences of two JSON values, a line each, as `optimizer.b1: 0.9 -> 0.8`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            line
            for n in names
            for line in diff(old.get(n), new.get(n), f"{path}.{n}" if path else n)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in diff(a, b, f"{path}.{i}")]
    texts = [each if isinstance(each, str) else json.dumps(each) for each in (old, new)]
    same = next((place for place, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    return [] if old == new else [f"{path}: {' -> '.join(_short(text, same) for text in texts)}"]


def _short(text: str, same: int) -> str:
    """A text of at most 100 characters: its start, and its end or the first difference.

    same: the number of equal characters at the start of both texts.
    """
    if len(text) < 100:
        return text
    return text[:60] + "..." + (text[-20:] if same < 60 else text[same - 10 : same + 20] + "...")
