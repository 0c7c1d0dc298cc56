"""Weights and configs of other libraries: folders of safetensors, one file a family of models."""
