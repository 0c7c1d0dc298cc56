"""Launchers, one file each: `python -m launch.NAME EXPERIMENT [options] -- [overrides]`."""
