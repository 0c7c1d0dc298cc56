"""Changes of pixels and sounds, most of them inside the compiled step."""
