"""Images of shapes with masks that number their classes, as folders and as parquet files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from data_cases import MODEL
from PIL import Image

from crate_mae.batches.config import LabelledDataConfig, SupervisedAugment
from crate_mae.training.config import (
    CheckpointConfig,
    FinetuneConfig,
    FinetuneOptimConfig,
    TrainerConfig,
)
from crate_mae.training.segment_config import SegmentConfig

SIZE = (12, 10)
"""Height and width of the images: no square, and no multiple of a patch."""


def shape(number: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A grey image (H, W) and its mask: ground 0, a bright block 1, a dark one 2, 255 between."""
    generator = np.random.default_rng(number)
    height, width = size
    image = generator.integers(110, 140, size, dtype=np.uint8)
    mask = np.zeros(size, dtype=np.uint8)
    top, left = int(generator.integers(0, height // 3)), int(generator.integers(0, width // 3))
    half = width // 2
    mask[top : top + height // 2, left : left + half] = 1
    mask[height - height // 3 :, half + 1 :] = 2
    mask[height - height // 3 - 1, half + 1 :] = 255
    image[mask == 1] = generator.integers(220, 255, int((mask == 1).sum()))
    image[mask == 2] = generator.integers(0, 30, int((mask == 2).sum()))
    return image, mask


def write_shapes(folder: Path, *, train: int = 24, test: int = 8) -> Path:
    """The folder, now holding images/train, images/test and masks/ of so many shapes."""
    for part, numbers in (("train", range(train)), ("test", range(1000, 1000 + test))):
        (folder / "images" / part).mkdir(parents=True)
        (folder / "masks").mkdir(exist_ok=True)
        for number in numbers:
            image, mask = shape(number)
            Image.fromarray(image).save(folder / "images" / part / f"{number}.bmp")
            Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def write_parquet(folder: Path, *, train: int = 24, test: int = 8) -> str:
    """The address of the same shapes as parquet files with the columns image and mask."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for part, numbers in (("train", range(train)), ("test", range(1000, 1000 + test))):
        rows: dict[str, list[dict[str, bytes]]] = {"image": [], "mask": []}
        for number in numbers:
            for key, values in zip(("image", "mask"), shape(number), strict=True):
                rows[key].append({"bytes": encoded(values)})
        pq.write_table(pa.table(rows), folder / f"{part}.parquet")
    return f"parquet:{folder}"


def encoded(values: np.ndarray) -> bytes:
    """An array as the bytes of a PNG."""
    data = io.BytesIO()
    Image.fromarray(values).save(data, "png")
    return data.getvalue()


def small_segment(source: str, masks: str, **changes: Any) -> FinetuneConfig:
    """Two epochs of four steps on shapes, cropped, mirrored, with dropped steps and an average.

    Settings of the section `segment` are given as they are; other sections replace these here.
    """
    sections = {
        "model": MODEL,
        "data": LabelledDataConfig(
            source=source, val_share=0.3, workers=0,
            augment=SupervisedAugment(kind="resized_crop", min_scale=0.5),
        ),
        "optim": FinetuneOptimConfig(
            epochs=2, batch_size=4, base_lr=0.3, warmup_epochs=0, layer_decay=0.5, drop_path=0.2,
            ema=0.5,
        ),
        "trainer": TrainerConfig(accelerator="cpu", devices=1),
        "record": CheckpointConfig(log_every=1, checkpoint_steps=1),
    }  # fmt: skip
    known = {"weights", "evaluate", "new_head", "image_size", "seed", *sections}
    own = {key: value for key, value in changes.items() if key in known}
    segment = {key: value for key, value in changes.items() if key not in known}
    return FinetuneConfig(
        name="shapes",
        task="segment",
        segment=SegmentConfig(masks=masks, **segment),
        **{**sections, **own},
    )
