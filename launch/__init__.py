"""Starts `jaxbig train` somewhere: `python -m launch.NAME EXPERIMENT [its options] -- [overrides]`, a file a place."""
