"""Mean, deviation and range of pixels, exact, in one pass over a source."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from crate_mae.sources.base import ImageSource, Share, Source, random_subset
from crate_mae.sources.images import Sample, UnreadableImage, to_channels
from crate_mae.sources.webdataset import StreamSource

# Pixels that are converted to float64 at once.
_CHUNK = 1 << 20


class PixelStatistics:
    """Exact mean and standard deviation per channel, gathered image by image in float64.

    Values are on the [0, 1] scale: uint8 is divided by 255, floats count as they are. Chunks are
    merged by the update of Chan, Golub and LeVeque, which does not cancel as sums of squares do.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)
        self.low = torch.full((channels,), torch.inf, dtype=torch.float64)
        self.high = torch.full((channels,), -torch.inf, dtype=torch.float64)
        self.bytes_only = True
        """Whether all images were of 8 bits."""

    @property
    def lowest(self) -> float:
        """The lowest value of all channels."""
        return float(self.low.min())

    @property
    def highest(self) -> float:
        """The highest value of all channels."""
        return float(self.high.max())

    def add(self, image: Tensor) -> None:
        """Count in the pixels of a (C, H, W) image."""
        scale = 255.0 if image.dtype == torch.uint8 else 1.0
        self.bytes_only = self.bytes_only and image.dtype == torch.uint8
        pixels = image.flatten(1)
        for start in range(0, pixels.shape[1], _CHUNK):
            values = pixels[:, start : start + _CHUNK].double() / scale
            self._merge(values)
            self.low = torch.minimum(self.low, values.amin(dim=1))
            self.high = torch.maximum(self.high, values.amax(dim=1))

    def _merge(self, values: Tensor) -> None:
        added = values.shape[1]
        mean = values.mean(dim=1)
        squares = (values - mean[:, None]).square().sum(dim=1)
        total = self.count + added
        delta = mean - self._mean
        self._mean += delta * (added / total)
        self._squares += squares + delta.square() * (self.count * added / total)
        self.count = total

    def mean(self) -> tuple[float, ...]:
        """The mean of each channel."""
        return tuple(self._mean.tolist())

    def std(self) -> tuple[float, ...]:
        """The population standard deviation of each channel."""
        return tuple((self._squares / self.count).sqrt().tolist())

    def value_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(Lowest, highest) value of each channel, as images are drawn and errors are read.

        0 and 1 of 8-bit images, of others what was met: of 1 or 3 channels together, as one picture
        has them, of more each by itself.
        """
        channels = len(self.low)
        if self.bytes_only:
            return (0.0,) * channels, (1.0,) * channels
        low, high = self.low, self.high
        if channels in (1, 3):
            low, high = low.min().expand(channels), high.max().expand(channels)
        high = torch.where(high > low, high, low + 1)  # a single value has no range
        return tuple(low.tolist()), tuple(high.tolist())

    def check_varies(self, address: str) -> None:
        """Raise ValueError for a channel of one value everywhere."""
        for channel, (middle, spread) in enumerate(zip(self.mean(), self.std(), strict=True)):
            same = float(self.low[channel]) == float(self.high[channel])
            # Sums of equal values round: to 1e-17 about as often as to 0.
            if same or spread <= 1e-6 * abs(middle):
                raise ValueError(
                    f"channel {channel} of {address} has one value everywhere, about"
                    f" {middle:.4g}: leave such channels out, or give data.mean and data.std"
                )


def measure_statistics(
    source: Source, *, channels: int, limit: int | None = None, seed: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the [0, 1] scale, after `to_channels`.

    With a limit, over that many images drawn at random; images that cannot be read are left out.
    Raises ValueError where none can be read and for a channel of one value everywhere.
    """
    statistics = measure_pixels(source, channels=channels, limit=limit, seed=seed)
    statistics.check_varies(source.address)
    return statistics.mean(), statistics.std()


def measure_pixels(
    source: Source, *, channels: int, limit: int | None = None, seed: int = 0
) -> PixelStatistics:
    """The statistics behind `measure_statistics`, whatever they are; ValueError without images."""
    statistics = PixelStatistics(channels)
    for sample in _samples(source, limit, seed):
        if isinstance(sample, Sample):
            try:
                statistics.add(to_channels(sample.image, channels))
            except ValueError as error:
                raise ValueError(f"{source.address}, {sample.name}: {error}") from error
    if statistics.count == 0:
        raise ValueError(f"{source.address} holds no image that can be read")
    return statistics


def _samples(source: Source, limit: int | None, seed: int) -> Iterator[Sample | UnreadableImage]:
    """Every sample, or `limit` of them drawn by the seed."""
    if limit is None:
        return source.samples()
    if isinstance(source, StreamSource):
        return islice(source.samples(Share(seed=seed, shuffle=True)), limit)
    assert isinstance(source, ImageSource)
    return random_subset(source, limit, seed).samples()
