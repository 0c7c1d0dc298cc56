"""A PyTorch train step: AdamW, eager or by `torch.compile`."""

import importlib
from typing import Any

import numpy as np
from cases import DECAY, RATE
from side import Side

torch: Any = importlib.import_module("torch")


def make(
    case: str, ours: dict[str, np.ndarray], rows: dict[str, np.ndarray], *, compiled: bool
) -> Side:
    """The rival of a case, with our parameters."""
    module = importlib.import_module(f"torch_{case}")
    model = module.Model()
    state = {name: torch.tensor(value) for name, value in module.from_ours(ours).items()}
    buffers = dict(model.named_buffers())  # running statistics
    model.load_state_dict({**buffers, **state})
    model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)
    inputs = torch.tensor(rows["inputs"])
    inputs = inputs.permute(0, 3, 1, 2).contiguous() if inputs.ndim == 4 else inputs.long()
    targets = torch.tensor(rows["targets"]).long().flatten()
    run = torch.compile(model) if compiled else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = run(inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Side(step, sum(each.numel() for each in trained))
