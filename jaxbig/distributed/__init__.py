"""Devices and processes: meshes, shardings, a run's lock, how its processes watch each other."""
