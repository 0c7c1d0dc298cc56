"""Data sets that come with jaxbig or need a name only; prepared once in TFDS's folder."""
