"""Starts `jaxbig train` somewhere: `python -m launch.NAME EXPERIMENT [its options] -- [overrides]`, one file a place."""
