"""The compiled functions of a run: pure functions of (state, batch), no effects."""
