"""jaxbig: one experiment file from a laptop to a thousand accelerators, and the same run back."""

import os

__version__ = "0.1.0"

# On one core alone XLA multiplies matrices in another order than on two or twenty, and a run would get other bits.
if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1:
    os.environ.setdefault("NPROC", "2")
