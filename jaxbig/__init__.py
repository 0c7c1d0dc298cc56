"""jaxbig: one experiment file from a laptop to a thousand accelerators, and the same run back."""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
