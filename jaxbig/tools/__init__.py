"""Functions that the commands call: check, bench, compare, describe, inspect, replay."""
