"""CRATE-MAE: a white-box masked autoencoder.

The public names stand once, in `__init__.pyi`, here and in every package; they are loaded on first
use, so importing a package costs nothing.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name; where a package is missing for it, the error says how to install it."""
    try:
        return _load(name)
    except ImportError as error:
        from crate_mae.common.extras import with_command

        raise with_command(error) from error
