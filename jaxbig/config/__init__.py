"""An experiment as a typed value: checked, loaded, overridden by options, written as JSON."""
