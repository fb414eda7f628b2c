"""ViT-MAE, the model to compare with: transformers' own, behind the interface of ours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
