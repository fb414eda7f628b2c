"""An exported encoder in the place of a model: features by another runtime than PyTorch."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from crate_mae.export.exporting import export_model
from crate_mae.export.runtimes import load_exported
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.sources.base import ImageSource
from crate_mae.weights.weights_folder import load_model

ENGINES = ("torch", "onnx", "openvino")
"""What can compute features."""


class ExportedEncoder(nn.Module):
    """The encoder of a model, run by another runtime on the CPU; features after the last layer.

    It takes images of the model's own size. `folder` is what `export_model` wrote of that model.
    """

    runs_elsewhere = True
    """Its runtime has threads of its own: it may not be copied into other processes."""

    def __init__(self, model: CrateMAE | CrateEncoder, folder: Path) -> None:
        super().__init__()
        self.original = model
        self.config, self.preprocess = model.config, model.preprocess
        self.match = None
        self._run = load_exported(folder)

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
            raise ValueError(
                "an exported encoder gives features after the last layer alone: other layers, and"
                " the pool 'layers', need the engine torch"
            )
        return {None: self.encode(images)}

    def untrained(self, seed: int) -> CrateMAE | CrateEncoder:
        """The random baseline: the same model with fresh weights, in PyTorch."""
        return self.original.untrained(seed)


def engine_for(
    weights: str | Path,
    engine: str,
    *,
    images: ImageSource | None = None,
    device: str | None = None,
) -> ExportedEncoder:
    """The encoder of weights in an engine other than torch, exported and checked on the way.

    It is checked on the first of `images`, or, without any, on squares of two photographs, which
    models of 1 or 3 channels take. Raises ValueError for an engine that is not known and for a
    device other than the CPU; else as `export_model`.
    """
    if engine not in ENGINES or engine == "torch":
        raise ValueError(f"engine must be one of {', '.join(ENGINES[1:])}, not {engine!r}")
    if device is not None and torch.device(device).type != "cpu":
        raise ValueError(f"engine {engine} computes on the CPU: leave out --device {device}")
    with tempfile.TemporaryDirectory() as place:
        done = export_model(weights, Path(place) / "exported", format=engine, images=images)
        # The runtime holds all of it from here on: the file may go.
        return ExportedEncoder(load_model(weights), done.folder)
