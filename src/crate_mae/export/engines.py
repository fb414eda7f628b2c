"""An exported encoder in the place of a model: features by another runtime than PyTorch."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from crate_mae.export.export_model import export_model
from crate_mae.export.runtimes import load_exported
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.weights.weights_folder import load_model

ENGINES = ("torch", "onnx", "openvino")
"""What can compute features."""


class ExportedEncoder(nn.Module):
    """The encoder of weights, run by another runtime on the CPU; features after the last layer.

    It takes images of the model's own size. The file that it runs lies in a temporary folder, which
    goes when it is closed.
    """

    def __init__(self, weights: str | Path, *, engine: str, int8: bool = False) -> None:
        super().__init__()
        self.original: CrateMAE | CrateClassifier = load_model(weights)
        self.config, self.preprocess = self.original.config, self.original.preprocess
        with ExitStack() as opened:
            place = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            done = export_model(weights, place / "exported", format=engine, int8=int8)
            self.difference = done.difference
            self._run = load_exported(done.folder)
            self._opened = opened.pop_all()

    @property
    def kind(self) -> str:
        """As the model that was exported."""
        return self.original.kind

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W)."""
        return self._run([images.contiguous()])

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None]
    ) -> dict[int | None, Tensor]:
        """Features as `encode`, for None alone; ValueError for other layers."""
        if set(layers) != {None}:
            raise ValueError("an exported encoder gives features after the last layer alone")
        return {None: self.encode(images)}

    def close(self) -> None:
        """Remove the file that it runs."""
        self._opened.close()


def engine_for(weights: str | Path, engine: str, *, device: str | None = None) -> ExportedEncoder:
    """The encoder of weights in an engine other than torch.

    Raises ValueError for an engine that is not known and for a device other than the CPU; else as
    `export_model`.
    """
    if engine not in ENGINES or engine == "torch":
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if device not in (None, "cpu") and torch.device(device).type != "cpu":
        raise ValueError(f"engine {engine} computes on the CPU: leave out --device {device}")
    return ExportedEncoder(weights, engine=engine)
