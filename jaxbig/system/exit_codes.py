"""The exit codes of every command of jaxbig."""

DONE = 0
FAILED = 1
"""The run failed: `Failed`."""
REFUSED = 2
"""The request is invalid: `Refused`."""
PEER_LOST = 69
"""Another process of the run ended, so this one stopped; the fault is not its own."""
INTERRUPTED = 75
"""EX_TEMPFAIL of sysexits.h: stopped on request; the same command resumes."""
STOPPED = 130
"""Ctrl-C ended the command at once."""
