"""Tokenizers, and the packing of texts into rows."""
