"""What a source of images holds: sizes, colours, labels, statistics, and what cannot be read."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from statistics import median

import torch
from torch import Tensor

from crate_mae.common.escaping import printable
from crate_mae.common.progress import Progress
from crate_mae.common.text_tables import named_values
from crate_mae.sources.base import ImageSource, Share, Source, random_subset
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage, probe_image, to_channels
from crate_mae.sources.webdataset import StreamSource, decode_record

# Pixels that are converted to float64 at once.
_CHUNK = 1 << 20
_SHOWN_SIZES = 5
_SHOWN_LINES = 20
_WIDTH = 80
_NAME_WIDTH = 48


class PixelStatistics:
    """Exact mean and standard deviation per channel, gathered image by image in float64.

    Values are on the [0, 1] scale: uint8 is divided by 255, floats count as they are. Chunks are
    merged by the update of Chan, Golub and LeVeque, which does not cancel as sums of squares do.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)
        self.lowest, self.highest = float("inf"), float("-inf")

    def add(self, image: Tensor) -> None:
        """Count in the pixels of a (C, H, W) image."""
        scale = 255.0 if image.dtype == torch.uint8 else 1.0
        pixels = image.flatten(1)
        for start in range(0, pixels.shape[1], _CHUNK):
            values = pixels[:, start : start + _CHUNK].double() / scale
            self._merge(values)
            self.lowest = min(self.lowest, float(values.min()))
            self.highest = max(self.highest, float(values.max()))

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


def measure_statistics(
    source: Source, *, channels: int, limit: int | None = None, seed: int = 0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the [0, 1] scale, after `to_channels`.

    With a limit, over that many images drawn at random; images that cannot be read are left out.
    """
    statistics = PixelStatistics(channels)
    for sample in _samples(source, limit, seed):
        if isinstance(sample, Sample):
            try:
                statistics.add(to_channels(sample.image, channels))
            except ValueError as error:
                raise ValueError(f"{source.address}, {sample.name}: {error}") from error
    if statistics.count == 0:
        raise ValueError(f"{source.address} holds no image that can be read")
    mean, std = statistics.mean(), statistics.std()
    for channel, (middle, spread) in enumerate(zip(mean, std, strict=True)):
        # Sums of equal values round: to 1e-17 about as often as to 0.
        if spread <= 1e-6 * max(abs(middle), 1e-3):
            raise ValueError(
                f"channel {channel} of {source.address} has one value everywhere, about"
                f" {middle:.4g}: leave such channels out, or give data.mean and data.std"
            )
    return mean, std


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The facts that `describe` gathers about one source."""

    address: str
    split: str | None
    count: int
    """Images in the source."""
    examined: int
    """Images looked at: all of them, or as many as the limit allows."""
    readable: int
    unreadable: tuple[tuple[str, str], ...]
    """Name and reason of every image that cannot be read."""
    heights: tuple[int, float, int] | None
    """Smallest, median and largest height; None when no image can be read."""
    widths: tuple[int, float, int] | None
    sizes: dict[str, int]
    """The most frequent sizes, as "height x width", and how many images have them."""
    num_sizes: int
    modes: dict[str, int]
    """Colour modes as the files name them."""
    dtypes: dict[str, int]
    channel_counts: dict[int, int]
    channels: int | None
    """The number of channels most images have; the statistics are theirs."""
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    value_range: tuple[float, float] | None
    classes: dict[str, int] | None
    """Images of each class among the readable ones; None when nothing is labelled."""
    unlabelled: int
    fingerprint: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values that can be written as JSON."""
        values = asdict(self)
        values["channel_counts"] = {str(key): n for key, n in self.channel_counts.items()}
        return values

    def table(self) -> str:
        """Aligned text for a terminal of 80 columns; long lists are cut, with a count."""
        rows = [*self._overview(), *self._pixel_rows(), *self._class_rows()]
        rows += [("note", note) for note in self.notes]
        rows.append(("fingerprint", self.fingerprint))
        bad = _cut([f"{name}: {reason}" for name, reason in self.unreadable])
        rows += [("unreadable" if not place else "", line) for place, line in enumerate(bad)]
        lines = named_values((key, printable(value)) for key, value in rows)
        return "\n".join(_fitted(line) for line in lines)

    def _overview(self) -> Iterator[tuple[str, str]]:
        yield "source", self.address
        yield "split", self.split or "-"
        seen = "" if self.examined == self.count else f", {self.examined} examined"
        yield "images", f"{self.count}{seen}"
        yield "readable", f"{self.readable} of {self.examined}"

    def _pixel_rows(self) -> Iterator[tuple[str, str]]:
        for key, value in (("height", self.heights), ("width", self.widths)):
            if value is not None:
                yield key, "min {}, median {:g}, max {}".format(*value)
        if self.sizes:
            more = self.num_sizes - len(self.sizes)
            yield "sizes (h x w)", _counted(self.sizes) + (f", {more} more" if more else "")
        if self.modes:
            yield "modes", _counted(self.modes)
        if self.mean is None or self.std is None or self.value_range is None:
            return
        yield "channels", _counted({str(key): n for key, n in self.channel_counts.items()})
        yield "values", f"{_counted(self.dtypes)}; range {_numbers(self.value_range)}"
        yield "mean", _numbers(self.mean)
        yield "std", _numbers(self.std)

    def _class_rows(self) -> Iterator[tuple[str, str]]:
        if self.classes is None:
            yield "classes", "none (unlabelled)"
            return
        least, most = min(self.classes.values()), max(self.classes.values())
        yield "classes", f"{len(self.classes)}, with {least} to {most} images each"
        if self.unlabelled:
            yield "", f"{self.unlabelled} images carry no label"
        counts = [(name[:_NAME_WIDTH], str(n)) for name, n in self.classes.items()]
        for line in _cut(named_values(counts)):
            yield "", line


def describe_source(
    source: Source,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """A report on the source from one pass over it, or over `limit` of its images."""
    count = len(source)
    to_do = count if limit is None else min(limit, count)
    tally = _Tally()
    for facts, sample in _described(source, limit):
        tally.add(facts, sample)
        if progress is not None:
            progress(tally.examined, to_do)
    return tally.report(source, count)


@dataclass
class _Tally:
    """What one pass over a source counts."""

    examined: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    labels: Counter[int | None] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    statistics: dict[int, PixelStatistics] = field(default_factory=dict)

    def add(self, facts: ImageFacts | None, sample: Sample | UnreadableImage) -> None:
        self.examined += 1
        if isinstance(sample, UnreadableImage):
            self.unreadable.append((sample.name, sample.reason))
            return
        channels, height, width = sample.image.shape
        self.sizes[height, width] += 1
        self.dtypes[str(sample.image.dtype).removeprefix("torch.")] += 1
        self.labels[sample.label] += 1
        self.channels[channels] += 1
        if facts is not None:
            self.modes[facts.mode] += 1
        self.statistics.setdefault(channels, PixelStatistics(channels)).add(sample.image)

    def report(self, source: Source, count: int) -> DataReport:
        # On a tie the larger number of channels: grey can be shown as colour without loss.
        channels = max(self.channels, key=lambda c: (self.channels[c], c), default=None)
        pixels = None if channels is None else self.statistics[channels]
        common = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_SIZES]
        return DataReport(
            address=source.address,
            split=source.split,
            count=count,
            examined=self.examined,
            readable=self.sizes.total(),
            unreadable=tuple(self.unreadable),
            heights=_spread([height for height, _ in self.sizes.elements()]),
            widths=_spread([width for _, width in self.sizes.elements()]),
            sizes={f"{height} x {width}": n for (height, width), n in common},
            num_sizes=len(self.sizes),
            modes=dict(self.modes.most_common()),
            dtypes=dict(self.dtypes.most_common()),
            channel_counts=dict(self.channels.most_common()),
            channels=channels,
            mean=None if pixels is None else pixels.mean(),
            std=None if pixels is None else pixels.std(),
            value_range=None if pixels is None else (pixels.lowest, pixels.highest),
            classes=_class_balance(self.labels, source.class_names),
            unlabelled=self.labels[None],
            fingerprint=source.fingerprint(),
            notes=tuple(self._notes(channels)),
        )

    def _notes(self, channels: int | None) -> Iterator[str]:
        if channels is not None and len(self.channels) > 1:
            yield (
                f"the images differ in channels; mean, std and range are of the"
                f" {self.channels[channels]} with {channels}"
            )


def _described(
    source: Source, limit: int | None
) -> Iterator[tuple[ImageFacts | None, Sample | UnreadableImage]]:
    """Header facts and decoded image of each sample to be examined."""
    if isinstance(source, StreamSource):
        for record in islice(source.records(), limit):
            yield _facts(partial(probe_image, record.image, record.name)), decode_record(record)
        return
    assert isinstance(source, ImageSource)
    chosen = source if limit is None else random_subset(source, limit)
    for index, sample in enumerate(chosen.samples()):
        yield _facts(partial(chosen.facts, index)), sample


def _facts(read: Callable[[], ImageFacts]) -> ImageFacts | None:
    try:
        return read()
    except UnreadableImage:
        return None


def _samples(source: Source, limit: int | None, seed: int) -> Iterator[Sample | UnreadableImage]:
    """Every sample, or `limit` of them drawn by the seed."""
    if limit is None:
        return source.samples()
    if isinstance(source, StreamSource):
        return islice(source.samples(Share(seed=seed, shuffle=True)), limit)
    assert isinstance(source, ImageSource)
    return random_subset(source, limit, seed).samples()


def _spread(values: list[int]) -> tuple[int, float, int] | None:
    return (min(values), float(median(values)), max(values)) if values else None


def _class_balance(
    labels: Counter[int | None], class_names: tuple[str, ...] | None
) -> dict[str, int] | None:
    """Images of each class; a stream has no class names, so there the numbers stand for them."""
    if class_names is None:
        numbers = sorted(label for label in labels if label is not None)
        return {str(number): labels[number] for number in numbers} or None
    balance: Counter[str] = Counter()
    for number, name in enumerate(class_names):
        balance[name] += labels[number]
    return dict(balance)


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN_LINES
    return lines if more <= 0 else [*lines[:_SHOWN_LINES], f"... and {more} more"]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({n})" for name, n in counts.items())


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6f}" for value in values)


def _fitted(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
