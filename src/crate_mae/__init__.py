"""CRATE-MAE: a white-box masked autoencoder.

The public names stand once, in `__init__.pyi`, here and in every package; they are loaded on first
use, so importing a package costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
