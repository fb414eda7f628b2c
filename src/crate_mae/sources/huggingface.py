"""Datasets of the Hugging Face Hub, read by the `datasets` library but never decoded by it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from crate_mae.sources.base import IMAGE_KEYS, EncodedSource, ImageSource, existing_path
from crate_mae.sources.images import UnreadableImage
from crate_mae.sources.parquet import integer_column, pick_column, pick_label_column
from crate_mae.sources.splits import match_split


class HuggingFaceSource(EncodedSource):
    """A split of a dataset of the `datasets` library, read undecoded."""

    def __init__(
        self,
        address: str,
        split: str,
        dataset: Any,
        image: str,
        label: str | None,
        class_names: Sequence[str] | None,
        folders: Sequence[Path],
    ) -> None:
        labels = None
        if label is not None:
            labels = integer_column(dataset.data.column(label))
        super().__init__(address, split, labels, class_names)
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
        # The path comes out of the data: it may lead only to where this dataset's own files are.
        if path.is_absolute() and any(path.resolve().is_relative_to(f) for f in self._folders):
            return path
        raise UnreadableImage(self.name(index), f"it is only a path ({path}), not an image")

    def _content(self) -> Iterator[bytes]:
        column = self._dataset.data.column(self._image)
        yield json.dumps(pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()).encode()


def open_hugging_face(rest: str, split: str | None) -> ImageSource:
    """The source of `hf:NAME[:CONFIG]`, a dataset of the Hub or a folder that `datasets` reads.

    Without a split it is `train`, or the only one there is.
    """
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
    image, label, class_names = _find_features(dataset.features, datasets, address)
    dataset = dataset.select_columns([image] if label is None else [image, label])
    dataset = dataset.cast_column(image, datasets.Image(decode=False))
    return HuggingFaceSource(address, chosen, dataset, image, label, class_names, folders)


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
    features: Mapping[str, Any], datasets: Any, address: str
) -> tuple[str, str | None, list[str] | None]:
    """The image feature, the label feature if there is one, and its class names if it has them."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    image = pick_column(images, images, IMAGE_KEYS)
    if image is None:
        listed = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        problem = "several image columns" if images else "no column of type Image"
        raise ValueError(f"{address} has {problem}; its columns: {listed}")
    marked = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    plain = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.Value) and kind.dtype.lstrip("u").startswith("int")
    ]
    label = pick_label_column(marked + plain, marked, address)
    return image, label, features[label].names if label in marked else None
