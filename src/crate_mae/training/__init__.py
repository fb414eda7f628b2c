"""Training: the settings of a run, pre-training and fine-tuning that resume bit for bit."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
