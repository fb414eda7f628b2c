"""How many images a second the data pipeline gives, by kind of source and number of workers.

The pipeline is the real one: source, decoding, random crop and flip, masks, batches.
"""

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

import numpy as np
from PIL import Image

from crate_mae.batches.cache import CachedSource
from crate_mae.batches.config import DataConfig
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.masked import MaskedBatches
from crate_mae.batches.on_device import NotKeptError
from crate_mae.common.progress import Progress
from crate_mae.models.config import ModelConfig
from crate_mae.sources.address import open_source

logger = logging.getLogger(__name__)

SECONDS = 2.0
"""How long each pipeline is read, after its first batch."""
IMAGES = 512
"""Images of a generated source, or twice the batch where that is more."""
DIGITS = 1797
"""Images that scikit-learn's digits are."""
CACHE = 2.0
"""GiB that decoded images may take where they are read from memory."""
UNREAD = "could not be read"
Waiting = Literal["encoded", "decoded", "on device"]
"""How images wait for their batch: as files hold them, or in memory."""


def worker_counts(most: int | None = None) -> list[int]:
    """0, 1, 2, 4, ... up to the cores of this machine, or to `most`."""
    most = (os.cpu_count() or 1) if most is None else most
    return [0, *(1 << i for i in range(most.bit_length()) if 1 << i <= most)]


def loading_speeds(
    sources: Sequence[tuple[str, str]],
    config: ModelConfig,
    *,
    batch: int,
    workers: Sequence[int],
    seed: int = 0,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Images per second of every (name, address) with every number of workers, JSON-able rows.

    Images are decoded anew each time, as they are where a set is too large for the cache; two last
    rows have the images of the first source wait decoded, changed one by one and (data.on_device,
    here on the CPU) in whole batches. What fails has None for its speed, its images and a "note",
    and its reason goes to the log alone: neither an address nor a message is part of a row, as both
    may hold a path.
    """
    jobs: list[tuple[str, str, int, Waiting]] = [
        (name, address, count, "encoded") for name, address in sources for count in workers
    ]
    first, address = sources[0]
    jobs.append((f"{first}, decoded once", address, 0, "decoded"))
    jobs.append((f"{first}, decoded once, in whole batches", address, 0, "on device"))
    rows = []
    for index, (name, address, count, waiting) in enumerate(jobs):
        own = _small(config) if address == "digits" else config
        row: dict[str, Any] = {
            "source": name,
            "workers": count,
            "images_per_second": None,
            "images": None,
            "image_size": list(own.image_hw),
        }
        try:
            speed, images = _speed(address, own, batch, count, waiting, seed, seconds)
            row |= {"images_per_second": speed, "images": images}
            if speed is None:
                row["note"] = f"decoded images take more than {CACHE:g} GiB, or come as a stream"
        except NotKeptError as error:
            logger.warning("%s cannot be kept on a device: %s", name, error)
            row["note"] = "not for data.on_device: a stream, too much, or images that differ"
        except (ValueError, OSError, RuntimeError) as error:
            logger.warning("loading from %s with %d workers failed: %s", name, count, error)
            row["note"] = f"{UNREAD} ({type(error).__name__})"
        rows.append(row)
        if progress is not None:
            progress(index + 1, len(jobs))
    return rows


def unreadable(row: Mapping[str, Any]) -> bool:
    """Whether a row tells of images that could not be read."""
    return str(row.get("note", "")).startswith(UNREAD)


def _small(config: ModelConfig) -> ModelConfig:
    """The configuration for digits: grey images of 8 pixels."""
    return replace(config, image_size=8, patch_size=2, channels=1)


def _speed(
    address: str,
    config: ModelConfig,
    batch: int,
    workers: int,
    waiting: Waiting,
    seed: int,
    seconds: float,
) -> tuple[float | None, int]:
    """Images per second once the first batch is there, and how many images the source has.

    None in place of the speed where images that should wait decoded do not fit in memory.
    """
    data = ImageDataModule(
        DataConfig(
            source=address,
            val_share=0,
            mean=[0.5] * config.channels,
            std=[0.25] * config.channels,
            workers=workers,
            cache_gib=0.0 if waiting == "encoded" else CACHE,
            on_device=waiting == "on device",
        ),
        model=config,
        kind=MaskedBatches(),
        batch_size=batch,
        seed=seed,
    )
    data.open()
    if waiting == "decoded" and not isinstance(data.train_source, CachedSource):
        return None, data.num_samples
    return _read(data, seconds), data.num_samples  # workers end with the loader


def _read(data: ImageDataModule, seconds: float) -> float:
    """Images per second, from the second batch on, over at least so many seconds."""
    loader = data.train_dataloader()
    read, begun = 0, 0.0
    while not begun or perf_counter() - begun < seconds:
        for made in loader:
            data.batches_seen += 1
            if not begun:
                begun = perf_counter()  # workers have started, files have been opened
                continue
            read += len(made["images"])
            if perf_counter() - begun >= seconds:
                break
    return read / (perf_counter() - begun)


def check_enough(addresses: Sequence[str], batch: int) -> None:
    """Raise ValueError for an address with fewer images than a batch of so many.

    Raises what opening an address raises; no image is read.
    """
    for address in addresses:
        count = len(open_source(address))
        if count < batch:
            raise ValueError(
                f"{address} has {count} images, fewer than one batch of {batch}: use a smaller"
                " first number in --batch-sizes, or data with more images"
            )


def generated_count(batch: int) -> int:
    """Images of a generated source from which batches of so many are read."""
    return max(IMAGES, 2 * batch)


@contextlib.contextmanager
def generated_sources(
    config: ModelConfig, *, images: int = IMAGES, seed: int = 0
) -> Iterator[list[tuple[str, str]]]:
    """(name, address) of every kind of source that can be made here, in a folder that goes again.

    Smooth random colour images of the model's size, the first `IMAGES` of them different: JPEG and
    PNG files, a parquet table of JPEGs, an array; and scikit-learn's digits.
    """
    made = [_picture(config.image_hw, seed + index) for index in range(min(images, IMAGES))]
    with TemporaryDirectory(prefix="crate-mae-bench-") as name:
        folder = Path(name)
        files = {kind: [_encoded(image, kind) for image in made] for kind in ("JPEG", "PNG")}
        for kind, contents in files.items():
            (folder / kind).mkdir()
            for index in range(images):
                path = folder / kind / f"{index:07d}.{kind.lower()}"
                path.write_bytes(contents[index % len(contents)])
        jpeg = files["JPEG"]
        _write_parquet(
            folder / "images.parquet", [jpeg[index % len(jpeg)] for index in range(images)]
        )
        shape = (images, *config.image_hw, 3)
        array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
        for index in range(images):
            array[index] = np.asarray(made[index % len(made)])
        array.flush()
        del array
        yield [
            ("imagefolder, JPEG", f"imagefolder:{folder / 'JPEG'}"),
            ("imagefolder, PNG", f"imagefolder:{folder / 'PNG'}"),
            ("parquet, JPEG", f"parquet:{folder / 'images.parquet'}"),
            ("npy", f"npy:{folder / 'images.npy'}"),
            ("digits", "digits"),
        ]


def named_sources(addresses: Sequence[str]) -> list[tuple[str, str]]:
    """(name, address) of addresses; a name is the kind of source alone, numbered where it repeats.

    What stands behind the colon may be a path, which a result must not hold.
    """
    kinds = [address.partition(":")[0] for address in addresses]
    return [
        (kind if kinds.count(kind) == 1 else f"{kind} {kinds[: index + 1].count(kind)}", address)
        for index, (kind, address) in enumerate(zip(kinds, addresses, strict=True))
    ]


def _picture(size: tuple[int, int], seed: int) -> Image.Image:
    """A colour image that compresses about as a photograph does: smooth, with a little noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth, dtype=np.int16) + generator.integers(-8, 9, (*size, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _write_parquet(path: Path, contents: Sequence[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": pa.array(list(contents), pa.binary())}), path)
