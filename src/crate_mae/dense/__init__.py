"""What an encoder holds at every patch: token maps, principal components, attention, foreground."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
