"""Saved states: the only room that knows Orbax."""
