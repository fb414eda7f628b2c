"""An exported encoder in the place of a model: features by another runtime than PyTorch."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from crate_mae.export.exported_facts import read_facts, shown
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

    It takes images of the model's own size. `folder` is what `export_model` wrote of that model;
    with `weights_sha256`, as `weights_hash` gives it, it is known to be of the same weights. Raises
    ValueError for a folder of another model or task, and what `load_exported` raises.
    """

    runs_elsewhere = True
    """Its runtime has threads of its own: it may not be copied into other processes."""

    def __init__(
        self,
        model: CrateMAE | CrateEncoder,
        folder: Path,
        *,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        _check_of(model, folder, weights_sha256)
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


def _check_of(model: CrateMAE | CrateEncoder, folder: Path, weights_sha256: str | None) -> None:
    """Raise ValueError unless a folder says that it holds the encoder of this very model."""
    facts, prepared = read_facts(folder), model.preprocess
    if facts.what != "encode":
        raise ValueError(
            f"{folder} holds a model that was exported to do {shown(facts.what)}, which gives no"
            " features: export it with --what encode"
        )
    images = {"shape": ["batch", prepared.channels, *prepared.size], "dtype": "float32"}
    wanted = json.loads(json.dumps(prepared.to_dict()))
    compared = {
        "takes": (dict(facts.inputs), {"images": images}),
        **{f"preprocessing, {key}": (facts.preprocess.get(key), wanted[key]) for key in wanted},
        "weights": (facts.weights_sha256, weights_sha256 or facts.weights_sha256),
    }
    for name, (there, here) in compared.items():
        if there != here:
            raise ValueError(
                f"{folder} was exported from another model: {name} ({shown(there)} there,"
                f" {shown(here)} here); export this one into a new folder"
            )


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
