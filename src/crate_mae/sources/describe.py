"""What a source of images holds: sizes, colours, labels, statistics, and what cannot be read."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from statistics import median

from crate_mae.common.escaping import printable
from crate_mae.common.progress import Progress
from crate_mae.common.text_tables import named_values
from crate_mae.sources.base import ImageSource, Source, random_subset
from crate_mae.sources.found import PassedOver, Tally
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage, probe_image
from crate_mae.sources.labels import in_order
from crate_mae.sources.pixel_statistics import PixelStatistics
from crate_mae.sources.webdataset import StreamSource, decode_record

_SHOWN_SIZES = 5
_SHOWN_LINES = 20
_NARROWEST = 60
_NAMED = 5
_NAME_WIDTH = 48


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
    splits: tuple[str, ...] = ()
    """Every split that is there, the one described included."""
    passed_over: tuple[PassedOver, ...] = ()
    """What the source does not use, counted, with the first names."""
    no_labels: str | None = None
    """Why nothing is labelled, where that is known."""

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values that can be written as JSON."""
        values = asdict(self)
        values["channel_counts"] = {str(key): n for key, n in self.channel_counts.items()}
        return values

    def table(self, *, width: int | None = None) -> str:
        """Aligned text; long lists are cut, with a count, and nothing else is.

        With a width, lines are wrapped to it, as for a terminal; without one they stay whole.
        """
        rows = [*self._overview(), *self._pixel_rows(), *self._class_rows()]
        rows += [("passed over", str(entry)) for entry in self.passed_over]
        rows += [("note", note) for note in self.notes]
        rows.append(("fingerprint", self.fingerprint))
        bad = _cut(_by_reason(self.unreadable))
        rows += [("unreadable" if not place else "", line) for place, line in enumerate(bad)]
        wrap = None if width is None else max(width, _NARROWEST)
        return "\n".join(named_values(((k, printable(v)) for k, v in rows), wrap=wrap))

    def _overview(self) -> Iterator[tuple[str, str]]:
        yield "source", self.address
        others = [name for name in self.splits if name != self.split]
        beside = f" (beside it: {', '.join(others)})" if others else ""
        yield "split", f"{self.split or '-'}{beside}"
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
            why = f": {self.no_labels}" if self.no_labels else ""
            yield "classes", f"none (unlabelled{why})"
            return
        least, most = min(self.classes.values()), max(self.classes.values())
        yield "classes", f"{len(self.classes)}, with {least} to {most} images each"
        if self.unlabelled:
            yield "", f"{self.unlabelled} images carry no label"
        counts = [(printable(name)[:_NAME_WIDTH], str(n)) for name, n in self.classes.items()]
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
    for facts, sample, word in _described(source, limit, tally.met):
        tally.add(facts, sample, word)
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
    labels: Counter[int | str | None] = field(default_factory=Counter)
    met: Tally = field(default_factory=Tally)
    profiles: Counter[str] = field(default_factory=Counter)
    no_data: Counter[str] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    statistics: dict[int, PixelStatistics] = field(default_factory=dict)

    def add(
        self,
        facts: ImageFacts | None,
        sample: Sample | UnreadableImage,
        word: int | str | None,
    ) -> None:
        self.examined += 1
        if isinstance(sample, UnreadableImage):
            self.unreadable.append((sample.name, sample.reason))
            return
        channels, height, width = sample.image.shape
        self.sizes[height, width] += 1
        self.dtypes[str(sample.image.dtype).removeprefix("torch.")] += 1
        self.labels[word] += 1
        self.channels[channels] += 1
        if facts is not None:
            self.modes[facts.mode] += 1
            if facts.unread is not None:
                self.met.add(f"images with {facts.unread}, not read", sample.name)
            if facts.profile is not None:
                self.profiles[facts.profile] += 1
            if facts.no_data is not None:
                self.no_data[facts.no_data] += 1
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
            notes=(*self._notes(channels), *source.found.notes),
            splits=source.found.splits,
            passed_over=(*source.found.passed_over, *self.met.entries()),
            no_labels=source.found.no_labels,
        )

    def _notes(self, channels: int | None) -> Iterator[str]:
        if channels is not None and len(self.channels) > 1:
            yield (
                f"the images differ in channels; mean, std and range are of the"
                f" {self.channels[channels]} with {channels}"
            )
        if self.profiles:
            yield (
                f"{self.profiles.total()} images have colour profiles that are not applied"
                f" ({_counted(dict(self.profiles.most_common(5)))}): their colours are taken as"
                " sRGB; convert them to sRGB beforehand where that matters"
            )
        if self.no_data:
            yield (
                f"{self.no_data.total()} images name a value that stands for no data"
                f" ({_counted(dict(self.no_data.most_common(5)))}): it is read like any other; fill"
                " such pixels in beforehand"
            )


def _described(
    source: Source, limit: int | None, met: Tally
) -> Iterator[tuple[ImageFacts | None, Sample | UnreadableImage, int | str | None]]:
    """Header facts, decoded image and label of each sample to be examined.

    Labels of streams that are not understood are counted in `met`.
    """
    if isinstance(source, StreamSource):
        for record in islice(source.records(), limit):
            if record.label_fault is not None:
                met.add(f"labels that are no class ({record.label_fault})", record.name)
            facts = _facts(partial(probe_image, record.image, record.name))
            yield facts, decode_record(record), record.label
        return
    assert isinstance(source, ImageSource)
    chosen = source if limit is None else random_subset(source, limit)
    for index, sample in enumerate(chosen.samples()):
        label = sample.label if isinstance(sample, Sample) else None
        yield _facts(partial(chosen.facts, index)), sample, label


def _facts(read: Callable[[], ImageFacts]) -> ImageFacts | None:
    try:
        return read()
    except UnreadableImage:
        return None


def _spread(values: list[int]) -> tuple[int, float, int] | None:
    return (min(values), float(median(values)), max(values)) if values else None


def _class_balance(
    labels: Counter[int | str | None], class_names: tuple[str, ...] | None
) -> dict[str, int] | None:
    """Images of each class; of a stream, its labels themselves are the names."""
    if class_names is None:
        named = {str(label): count for label, count in labels.items() if label is not None}
        return {name: named[name] for name in in_order(named)} or None
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
    return ", ".join(f"{value:.6g}" for value in values)


def _by_reason(unreadable: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each reason, with how many images have it and the first of their names."""
    names: dict[str, list[str]] = {}
    for name, reason in unreadable:
        names.setdefault(reason, []).append(name)
    lines = []
    for reason, found in names.items():
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        shown = f"{', '.join(name[:_NAME_WIDTH] for name in found[:_NAMED])}{more}"
        single = f"{shown}: {reason}"
        lines.append(single if len(found) == 1 else f"{len(found)} images: {reason} ({shown})")
    return lines
