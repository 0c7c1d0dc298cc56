"""Data sets that need no download, and ImageNet's usual settings."""
