"""Qwen 2 and 2.5 (Yang et al., 2024): Llama with biases of queries, keys and values alone."""

from collections.abc import Sequence
from typing import Any

from jaxbig.errors import Refused
from jaxbig.pretrained.families.llama import Llama
from jaxbig.pretrained.family import Config, get

SLIDING = "sliding_attention"
FULL = "full_attention"


class Qwen2(Llama):
    """Qwen 2; its last layers may have a window."""

    model_type = "qwen2"
    same = {name: key for name, key in Llama.same.items() if "bias" not in name}
    ours = {"qkv_bias": True}

    def fields(self, config: Config) -> dict[str, Any]:
        fields = super().fields(config)
        if not config.get("use_sliding_window"):
            return fields | {"window": None, "window_pattern": (True,)}
        depth = fields["depth"]
        first = config.get("max_window_layers", depth)
        types = config.get("layer_types") or [FULL] * first + [SLIDING] * (depth - first)
        return fields | window_fields(types, get(config, "sliding_window"), depth)

    def config(self, model: Any) -> Config:
        return {
            **super().config(model),
            "use_sliding_window": model.window is not None,
            "max_window_layers": model.depth,
            **window_config(model),
        }

    def architecture(self, model: Any) -> str:
        return "Qwen2ForCausalLM"


def window_fields(types: Sequence[str], window: int | None, depth: int) -> dict[str, Any]:
    """Our fields of windows from `layer_types`, in the shortest pattern that gives them."""
    if len(types) != depth:
        raise Refused(f"config.json has {len(types)} layer_types and {depth} layers.")
    if wrong := set(types) - {SLIDING, FULL}:
        raise Refused(
            f"config.json has layer_types {sorted(wrong)[0]!r}: jaxbig has {SLIDING} and {FULL}."
        )
    if window is None and SLIDING in types:
        raise Refused(f"config.json has layer_types {SLIDING!r} and no sliding_window.")
    layers = [kind == SLIDING for kind in types]
    if not any(layers):
        return {"window": None, "window_pattern": (True,)}
    period = next(
        period
        for period in range(1, len(layers) + 1)
        if all(layers[layer] == layers[layer % period] for layer in range(len(layers)))
    )
    return {"window": window, "window_pattern": tuple(layers[:period])}


def window_config(model: Any) -> Config:
    """The keys of a model's windows."""
    layers = [
        model.window is not None and model.window_pattern[layer % len(model.window_pattern)]
        for layer in range(model.depth)
    ]
    return {
        "sliding_window": model.window,
        "layer_types": [SLIDING if windowed else FULL for windowed in layers],
    }
