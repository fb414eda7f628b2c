"""Small folders of parts of features: their settings, weights and images."""

from pathlib import Path

import numpy as np
from model_cases import digits_model
from PIL import Image

from crate_mae import save_model
from crate_mae.evaluation.part_settings import PartSettings
from crate_mae.models.config import Preprocess

SETTINGS = PartSettings(
    weights_sha256="w" * 64,
    engine="torch",
    pool="mean",
    layer=None,
    preprocess=Preprocess(size=(8, 8)).to_dict(),
    row_shape=(4,),
    class_names=("cat", "dog"),
    address="digits",
    split="test",
    fingerprint="f" * 64,
    images=10,
    shards=2,
    part_size=3,
)
"""Of ten images, one without a class, in two shards of two parts."""

BROKEN = (3, 8, 9, 10, 11)
"""Of 22 pictures the fourth, and all of the third part of four."""


def weights_and_pictures(folder: Path) -> Path:
    """The folder, with weights/ and 22 grey pictures of two classes, five of them broken."""
    save_model(digits_model(), folder / "weights")
    draw = np.random.default_rng(0)
    for index in range(22):
        path = folder / "pictures" / ("a" if index < 12 else "b") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index in BROKEN:
            path.write_bytes(b"no picture")
        else:
            Image.fromarray(draw.integers(0, 256, (9, 8), np.uint8)).save(path)
    return folder
