"""An experiment: everything a run is, in one typed value that a Python file returns.

A Flax module is a typed, frozen, documented dataclass already, so the experiment holds the model itself, and
the command line's options and help come from the fields.
"""

import hashlib
import json
from typing import Any

# What may change when a run goes on: where it runs, how far (a schedule then follows the new length), what it keeps.
PACE = (
    "log_every",
    "evaluate_every",
    "evaluate_batches",
    "checkpoint_every",
    "keep_last",
    "keep_best",
)
PACE += ("reader_threads", "workers", "read_ahead")
FREE = ("mesh", "steps", "accumulate", "deterministic", "offload", "guard", *PACE)
FREE_OF_DATA = ("skip_bad_records",)  # a batch is the same, however many more may be left out


def identity(experiment: Any, data_identity: str) -> dict[str, Any]:
    """What must not change when a run goes on, from an experiment's JSON: seed, data, batch, model, ..."""
    fixed = {name: value for name, value in experiment.items() if name not in FREE}
    fixed["data"] = {
        name: value for name, value in fixed["data"].items() if name not in FREE_OF_DATA
    }
    return {**fixed, "data_identity": data_identity}


def fingerprint(identity: dict[str, Any]) -> str:
    """A digest of `identity`: equal fingerprints may continue each other."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def diff(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two JSON values, a line each: `optimizer.learning_rate.peak: 0.001 -> 0.002`."""
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
    """A text, or its beginning and, where it has stayed the same for longer, what stands where it has not."""
    if len(text) < 100:
        return text
    return text[:60] + "..." + (text[-20:] if same < 60 else text[same - 10 : same + 20] + "...")
