"""Settings of a small folder of parts of features."""

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
