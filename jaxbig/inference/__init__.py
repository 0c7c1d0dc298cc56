"""Uses a trained run."""
