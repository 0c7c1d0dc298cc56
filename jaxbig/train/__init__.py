"""The training loop and its effects: batches in, checkpoints and metrics out."""
