"""A source with other labels than its own: classes matched by name, or none."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import ImageFacts, Sample


class Renumbered(ImageSource):
    """The images of a source with the class numbers of another; `numbers` has one a class."""

    def __init__(
        self, source: ImageSource, class_names: Sequence[str] | None, numbers: Sequence[int]
    ) -> None:
        self.address, self.split, self.found = source.address, source.split, source.found
        self.decodes = source.decodes
        self.class_names = None if class_names is None else tuple(class_names)
        self._source, self._numbers = source, tuple(numbers)

    def __len__(self) -> int:
        return len(self._source)

    def load(self, index: int) -> Sample:
        sample = self._source.load(index)
        return replace(sample, label=self._changed(sample.label))

    def name(self, index: int) -> str:
        return self._source.name(index)

    def label(self, index: int) -> int | None:
        return self._changed(self._source.label(index))

    def facts(self, index: int) -> ImageFacts:
        return self._source.facts(index)

    def _changed(self, label: int | None) -> int | None:
        if label is None or not self._numbers or self._numbers[label] < 0:
            return None
        return self._numbers[label]

    def _identity(self, index: int) -> tuple[str | int | None, ...]:
        name, _, *rest = self._source._identity(index)
        return name, self.label(index), *rest

    def _content(self) -> Iterator[bytes]:
        return self._source._content()


class Unlabelled(Renumbered):
    """The images of a source without their labels."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source, None, ())
        self.found = replace(source.found, no_labels="labels are not wanted (label key none)")
