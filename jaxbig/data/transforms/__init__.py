"""Changes of pixels and sounds: on the host when files are decoded, else in the compiled step."""
