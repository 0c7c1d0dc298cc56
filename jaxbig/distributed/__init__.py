"""Devices and processes: meshes, shardings, and how the processes of a run watch each other."""
