"""Families of pretrained models: a file each, with its table of names and its config's fields."""
