"""Launchers, one file each: `python -m jaxbig.launch.NAME EXPERIMENT [options] -- [overrides]`."""
