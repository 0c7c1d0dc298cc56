"""One experiment under many settings."""
