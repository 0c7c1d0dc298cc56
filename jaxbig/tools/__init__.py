"""What the commands call: check, bench, compare, describe, inspect, replay."""
