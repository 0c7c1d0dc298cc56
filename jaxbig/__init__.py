"""jaxbig: one experiment file from a laptop to a thousand accelerators, and the same run back."""

__version__ = "0.1.0"
