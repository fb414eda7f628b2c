"""Datasets of the Hugging Face Hub, read by the `datasets` library but never decoded by it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from crate_mae.sources.base import EncodedSource, ImageSource, existing_path
from crate_mae.sources.content_samples import file_parts, spread
from crate_mae.sources.folders import size_of
from crate_mae.sources.found import AS_USUAL, Found, Reading
from crate_mae.sources.images import UnreadableImage
from crate_mae.sources.labels import Labels, label_column
from crate_mae.sources.parquet import column_labels, image_column
from crate_mae.sources.splits import match_split


class HuggingFaceSource(EncodedSource):
    """A split of a dataset of the `datasets` library, read undecoded."""

    def __init__(
        self,
        address: str,
        split: str,
        dataset: Any,
        image: str,
        labels: Labels,
        folders: Sequence[Path],
    ) -> None:
        super().__init__(address, split, labels.numbers, labels.names)
        self._dataset, self._image, self._folders = dataset, image, folders

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"{self.split}/{index:06d}"

    def encoded(self, index: int) -> bytes | Path:
        """The bytes of an image, or its file where that is one of the dataset's own."""
        entry = self._dataset[index][self._image] or {}
        if entry.get("bytes") is not None:
            return bytes(entry["bytes"])
        path = Path(entry.get("path") or "")
        if self._is_own(path):
            return path
        raise UnreadableImage(self.name(index), f"it is only a path ({path}), not an image")

    def _is_own(self, path: Path) -> bool:
        # The path comes out of the data: it may lead only to where this dataset's own files are.
        return path.is_absolute() and any(path.resolve().is_relative_to(f) for f in self._folders)

    def _content(self) -> Iterator[bytes]:
        """The size of every image, and the bytes of those spread over the dataset."""
        column = self._dataset.data.column(self._image)
        sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
        paths = pc.struct_field(column, "path").to_pylist()
        for index, (size, name) in enumerate(zip(sizes, paths, strict=True)):
            if size is None and name and self._is_own(path := Path(name)):
                sizes[index] = size_of(path)
        yield json.dumps(sizes).encode()
        for index in spread(len(self)):
            with suppress(UnreadableImage, OSError):
                found = self.encoded(index)
                yield from file_parts(found) if isinstance(found, Path) else (found,)


def open_hugging_face(rest: str, split: str | None, reading: Reading = AS_USUAL) -> ImageSource:
    """The source of `hf:NAME[:CONFIG]`, a dataset of the Hub or a folder that `datasets` reads.

    Without a split it is `train`, or the only one there is. Raises ValueError where it cannot be
    read, and for `?streaming`: a run counts its images, knows them by a digest and goes on at any
    of them, which a stream from the Hub does not give before it is through.
    """
    if "?" in rest:
        raise ValueError(
            f"hf:{rest} would be a stream, and images of the Hub are not streamed: a run counts"
            " them, knows them by a digest and goes on exactly where it stopped; fetch the files"
            " (hf download NAME --repo-type dataset --local-dir FOLDER) and name parquet:FOLDER or"
            " wds:FOLDER, which read them in place"
        )
    datasets = _import_datasets()
    name, _, config = rest.partition(":")
    address, folders = f"hf:{rest}", [Path(datasets.config.HF_DATASETS_CACHE).resolve()]
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        local = existing_path(name, "hf")
        name, folders = str(local), [*folders, local.resolve()]
    try:
        splits = datasets.load_dataset(name, config or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"{address} cannot be loaded: {error}") from error
    chosen = _default_split(splits, split, address)
    dataset = splits[chosen]
    image, label, class_names, why = _find_features(dataset.features, datasets, reading, address)
    dataset = dataset.select_columns([image] if label is None else [image, label])
    dataset = dataset.cast_column(image, datasets.Image(decode=False))
    labels = Labels(why_none=why)
    if label is not None:
        chunks = dataset.data.column(label).chunks
        labels = column_labels(chunks, class_names, f"the column {label}")
    source = HuggingFaceSource(address, chosen, dataset, image, labels, folders)
    why = labels.why_none
    source.found = Found(
        splits=tuple(map(str, splits)),
        could_be_labelled=why is not None and not reading.unlabelled,
        no_labels=why,
    )
    return source


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            'hf: sources need the datasets library: pip install "crate-mae[hf]"'
        ) from error
    return datasets


def _default_split(splits: Iterable[str], split: str | None, address: str) -> str:
    present = [str(name) for name in splits]
    if split is None and len(present) == 1:
        return present[0]
    return match_split("train" if split is None else split, present, address)


def _find_features(
    features: Mapping[str, Any], datasets: Any, reading: Reading, address: str
) -> tuple[str, str | None, list[str] | None, str | None]:
    """The image feature, the label feature if any, its class names, and why there is none."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    image = image_column(images, images, reading, address)
    if image is None:
        listed = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        problem = "several image columns" if images else "no column of type Image"
        raise ValueError(
            f"{address} has {problem}; its columns: {listed}; choose one with --image-key"
        )
    others = [name for name in features if name != image]
    marked = [name for name in others if isinstance(features[name], datasets.ClassLabel)]
    label, why = label_column(others, marked, reading, address)
    return image, label, features[label].names if label in marked else None, why
