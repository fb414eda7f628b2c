"""Checkpoint files with the published key names into weights folders, and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from crate_mae.files import replacing
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import PRESETS, ModelConfig
from crate_mae.models.reference import (
    POSITIONS,
    UNUSED,
    from_reference,
    published_state,
    to_reference,
)
from crate_mae.models.weights import load_autoencoder, save_model, weights_hash

PUBLISHED = ("tiny", "small", "base", "large")
HEADS = ", ".join(f"{PRESETS[name].num_heads} for {name}" for name in PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What came of a checkpoint."""

    folder: Path
    config: ModelConfig
    parameters: int
    sha256: str
    """Of the new tensor file."""
    passed_over: list[str]
    """Names and shapes of what the file holds and the model does not need."""

    @property
    def preset(self) -> str | None:
        """The published size of the same widths, depths, image and patches; None for others."""
        sizes = ("image_size", "patch_size", "channels", "dim", "depth", "decoder_depth")
        mine = self.config.to_dict()
        for name in PUBLISHED:
            published = PRESETS[name].to_dict()
            if all(mine[key] == published[key] for key in sizes):
                return name
        return None

    def text(self) -> str:
        """All of it for people, with a warning where the heads are not those of its size."""
        config = self.config
        image, patch = (" x ".join(map(str, hw)) for hw in (config.image_hw, config.patch_hw))
        lines = [
            f"size        {self.preset or 'none of the published ones'}: width {config.dim},"
            f" {config.depth} + {config.decoder_depth} layers, {image} pixels in"
            f" patches of {patch}, {config.channels} channels",
            f"parameters  {self.parameters:,}",
            f"heads       {config.num_heads} + {config.decoder_num_heads}, as given",
            f"passed over {', '.join(self.passed_over) or 'nothing'}",
            f"SHA-256     {self.sha256}",
            f"wrote       {self.folder}",
        ]
        expected = None if self.preset is None else PRESETS[self.preset].num_heads
        if expected is not None and {config.num_heads, config.decoder_num_heads} != {expected}:
            lines.append(
                f"warning     the published {self.preset} model has {expected} heads: with another"
                " number every tensor fits and every result is wrong"
            )
        return "\n".join(lines)


def convert_checkpoint(
    file: str | Path, out: str | Path, *, num_heads: int, **options: Any
) -> Conversion:
    """What came of a published checkpoint, now a weights folder at `out`, new or empty.

    `options` as in `from_reference`, which reads the file (tensors alone, nothing is executed).
    Raises FileExistsError for a folder with content, before anything is read, what
    `from_reference` raises, and ValueError when a weight is not finite.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not overwritten; name a new folder")
    state = published_state(file)
    model = from_reference(state, num_heads=num_heads, **options)
    broken = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"{file} holds values that are not finite, in {', '.join(broken[:3])}")
    save_model(model, folder)
    return Conversion(
        folder=folder,
        config=model.config,
        parameters=sum(p.numel() for p in model.parameters()),
        sha256=weights_hash(folder),
        passed_over=[
            f"{key} {tuple(state[key].shape)}"
            + (" (the table is computed)" if key == POSITIONS else " (never used)")
            for key in state
            if key in (*UNUSED, POSITIONS)
        ],
    )


def write_reference(weights: str | Path, file: str | Path) -> int:
    """How many tensors went into a new file with the published names.

    `.safetensors` holds the tensors, `.pth` holds them under "model", as a training script saves
    them. Raises ValueError for another suffix, for a classifier and for a model that the published
    code cannot express (see `to_reference`), and FileExistsError for a file that is there.
    """
    path = Path(file)
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{path} must end in .safetensors or .pth")
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; name another file")
    model: CrateMAE = load_autoencoder(weights)
    state = {key: value.contiguous() for key, value in to_reference(model).items()}
    with replacing(path) as fresh:
        if path.suffix == ".pth":
            torch.save({"model": state}, fresh)
        else:
            save_file(state, fresh, metadata={"format": "pt"})
    return len(state)
