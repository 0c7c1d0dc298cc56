"""A PyTorch train step: AdamW, eager or by `torch.compile`."""

import importlib
from typing import Any

import numpy as np
from cases import DECAY, RATE
from side import Side, with_sizes

torch: Any = importlib.import_module("torch")
IGNORED = -100
"""The target that PyTorch's cross entropy leaves out."""


def make(
    case: str,
    model: Any,
    ours: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    *,
    compiled: bool,
) -> Side:
    """The rival of a case and our model, with our parameters."""
    module = importlib.import_module(f"torch_{case}")
    state = {name: torch.tensor(value) for name, value in module.from_ours(ours).items()}
    rival = with_sizes(module.Model, model, side=rows["inputs"].shape[1])
    buffers = dict(rival.named_buffers())  # running statistics
    rival.load_state_dict({**buffers, **state})
    rival.train()
    trained = [each for each in rival.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY, fused=True)
    inputs = torch.tensor(rows["inputs"])
    inputs = inputs.permute(0, 3, 1, 2).contiguous() if inputs.ndim == 4 else inputs.long()
    targets = np.where(rows["mask"] > 0, rows["targets"], IGNORED)
    targets = torch.tensor(targets).long().flatten()
    run = torch.compile(rival) if compiled else rival

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        made = run(inputs)
        logits, added = made if isinstance(made, tuple) else (made, 0.0)
        loss = added + torch.nn.functional.cross_entropy(
            logits.flatten(0, -2), targets, ignore_index=IGNORED
        )
        loss.backward()
        optimizer.step()
        return loss.item()

    return Side(step, sum(each.numel() for each in trained))
