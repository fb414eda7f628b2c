"""Models in files that other programs run: pt2, ONNX, OpenVINO, ExecuTorch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
