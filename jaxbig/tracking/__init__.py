"""Metrics on disk, figures, and the terminal."""
