"""Ahead-of-time plans for hardware that is not attached; nothing is run."""
