"""How images become model input: mean, deviation and range, measured or given and checked."""

import logging
from collections.abc import Iterable

from crate_mae.batches.config import DataConfig
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.sources.base import ImageSource
from crate_mae.sources.pixel_statistics import PixelStatistics, measure_pixels
from crate_mae.sources.webdataset import StreamSource

logger = logging.getLogger(__name__)

STATISTICS_SAMPLES = 10_000
"""Images on which mean and standard deviation are measured, at most."""
CHECKED_SAMPLES = 64
"""Images that a given mean and deviation are held against, and a range is taken from."""
FAR = 10.0
"""So many deviations off, or so much too wide, given values do not belong to the images."""


def chosen_preprocess(
    train: ImageSource | StreamSource,
    config: DataConfig,
    model: ModelConfig,
    size: tuple[int, int],
    seed: int,
    *,
    given: Preprocess | None,
) -> Preprocess:
    """The given preprocessing, else mean and std of the configuration, else measured ones.

    Raises ValueError for what does not fit the model, for a channel of one value, and for a mean or
    std on the scale from 0 to 255 beside 8-bit images; values that are far from the images' own are
    told of in the log.
    """
    if given is not None:
        if (given.size, given.channels) != (size, model.channels):
            raise ValueError(
                f"preprocessing for {given.channels} channels of {given.size[0]}x{given.size[1]}"
                f" does not fit a model for {model.channels} channels of {size[0]}x{size[1]}"
            )
        _check(given.mean, given.std, _sampled(train, model, seed), "the weights'")
        return given
    if config.mean is not None and config.std is not None:
        mean, std = tuple(config.mean), tuple(config.std)
        if len(mean) != model.channels or len(std) != model.channels:
            # Said by Preprocess in its own words, before images are read.
            return Preprocess(size=size, channels=model.channels, mean=mean, std=std)
        found = _sampled(train, model, seed)
        _check(mean, std, found, "data.mean and data.std")
    elif isinstance(train, StreamSource):
        raise ValueError("a stream cannot be measured before training: give data.mean and data.std")
    else:
        found = measure_pixels(train, channels=model.channels, limit=STATISTICS_SAMPLES, seed=seed)
        found.check_varies(train.address)
        mean, std = found.mean(), found.std()
    low, high = found.value_range()
    return Preprocess(size=size, channels=model.channels, mean=mean, std=std, low=low, high=high)


def _sampled(train: ImageSource | StreamSource, model: ModelConfig, seed: int) -> PixelStatistics:
    return measure_pixels(train, channels=model.channels, limit=CHECKED_SAMPLES, seed=seed)


def _check(
    mean: tuple[float, ...], std: tuple[float, ...], found: PixelStatistics, whose: str
) -> None:
    """Hold a given mean and std against those of some images."""
    shown = f"mean {_text(mean)}, std {_text(std)}"
    if found.bytes_only and (not all(0 <= m <= 1 for m in mean) or any(s > 1 for s in std)):
        by_255 = f"mean {_text(m / 255 for m in mean)}, std {_text(s / 255 for s in std)}"
        hint = f": divided by 255, {by_255}" if max(*mean, *std) > 2 else ""
        raise ValueError(
            f"{whose} ({shown}) do not belong to 8-bit images, whose values count from 0 to 1{hint}"
        )
    own = f"mean {_text(found.mean())}, std {_text(found.std())}"
    for m, s, middle, spread in zip(mean, std, found.mean(), found.std(), strict=True):
        if abs(middle - m) > FAR * s or spread * FAR * FAR < s or spread > FAR * s:
            logger.warning(
                "%s (%s) are far from those of the images (%s): the model would get values it"
                " hardly tells apart, or very large ones", whose, shown, own,
            )  # fmt: skip
            return


def _text(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
