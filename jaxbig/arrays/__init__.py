"""Small helpers for arrays and trees of arrays; no effects."""
