"""Batches as a pure function of (seed, step), read ahead by threads or processes."""
