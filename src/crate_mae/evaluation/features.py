"""Frozen features of images: extracted once, kept in one file, measured by the other modules.

Nothing is masked, nothing is random and nothing is unpickled.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from crate_mae.data.images import Sample, UnreadableImage, to_channels
from crate_mae.data.sources import ImageSource
from crate_mae.data.streams import StreamSource
from crate_mae.data.transforms import prepare
from crate_mae.files import replacing
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier, pool_tokens
from crate_mae.models.config import Preprocess

FeaturePool = Literal["mean", "cls", "tokens"]
Progress = Callable[[int, int], None]

UNLABELLED = -1
SUFFIXES = (".safetensors", ".npz", ".parquet")
FORMAT = "crate-mae-features/1"
FACTS = "crate_mae"


@dataclass(frozen=True, kw_only=True)
class Features:
    """One row of features per readable image, in the order of the source."""

    values: Tensor
    """(n, d) float32; (n, 1 + L, d) for all tokens."""
    labels: Tensor | None
    """(n,) int64, -1 where a single image has no label; None when none has one."""
    names: list[str]
    """One per row."""
    class_names: tuple[str, ...] | None
    pool: str
    """What a row is: "mean" of the patch tokens, "cls" token, all "tokens", or "pixels"."""
    unreadable: list[tuple[str, str]]
    """Name and reason of every image that was skipped."""


def extract_features(
    model: CrateMAE | CrateClassifier,
    source: ImageSource | StreamSource,
    *,
    pool: FeaturePool = "mean",
    batch_size: int = 256,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features of every readable image of a source, prepared as the model's training images were.

    Deterministic. The model runs in eval mode where it is, or is moved to `device` first; its
    training flags are put back. `progress` hears how many of how many images are done.
    Raises ValueError for an unknown pool and when no image can be read.
    """
    if pool not in get_args(FeaturePool):
        raise ValueError(f"pool must be one of {', '.join(get_args(FeaturePool))}, not {pool!r}")
    if device is not None:
        model.to(device)
    place = next(model.parameters()).device

    def encode(images: Tensor) -> Tensor:
        return pool_tokens(model.encode(images.to(place)), pool)

    with evaluating(model):
        return _collect(source, model.preprocess, encode, pool, batch_size, progress)


def raw_pixels(
    source: ImageSource | StreamSource,
    preprocess: Preprocess,
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Features:
    """The prepared pixels themselves as features (n, C*H*W): the baseline that needs no model.

    Raises ValueError when no image can be read.
    """
    return _collect(
        source, preprocess, lambda images: images.flatten(1), "pixels", batch_size, progress
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode; each module's own flag is restored after it."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def labelled_pair(train: Features, test: Features) -> tuple[Tensor, Tensor]:
    """The labels of both sets, (n,) and (m,), once it is sure that they can be measured.

    Raises ValueError for empty, unlabelled, non-finite or token features, for different widths and
    for a training set of a single class.
    """
    labels = _checked(train, "training"), _checked(test, "test")
    if train.values.shape[1] != test.values.shape[1]:
        raise ValueError(
            f"training features are {train.values.shape[1]} wide, test features"
            f" {test.values.shape[1]}: extract both with the same model and pool"
        )
    if len(torch.unique(labels[0])) < 2:
        raise ValueError(
            f"all training images are of class {int(labels[0][0])}: use images of at least two"
            " classes"
        )
    return labels


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path, once features can be saved there: call it before any work.

    Raises ValueError for a suffix other than .safetensors, .npz or .parquet, and FileExistsError
    for a file that is there, unless `overwrite` is set.
    """
    return check_file_target(path, SUFFIXES, what="features", overwrite=overwrite)


def check_file_target(
    path: str | Path, suffixes: tuple[str, ...], *, what: str, overwrite: bool
) -> Path:
    """The path, once its suffix is one of `suffixes` and no file would be lost."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: {what} are written as {', '.join(suffixes)}; change the suffix")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; name another file or ask for it to be overwritten")
    return path


def save_features(
    features: Features,
    path: str | Path,
    *,
    preprocess: Preprocess,
    weights_hash: str | None,
    overwrite: bool = False,
) -> Path:
    """The path of the file that now holds the features and how they were made.

    The suffix chooses the format. Each holds the values, names and labels and, as JSON, the facts
    that `load_facts` returns. Written beside the target and moved there in one step.
    Raises as `check_target`.
    """
    path = check_target(path, overwrite=overwrite)
    facts = {
        "format": FORMAT,
        "pool": features.pool,
        "shape": list(features.values.shape),
        "class_names": None if features.class_names is None else list(features.class_names),
        "preprocess": preprocess.to_dict(),
        "weights_sha256": weights_hash,
        "unreadable": [list(entry) for entry in features.unreadable],
    }
    write = {".safetensors": _write_safetensors, ".npz": _write_npz, ".parquet": _write_parquet}
    with replacing(path) as fresh:
        write[path.suffix.lower()](features, json.dumps(facts), fresh)
    return path


def load_features(path: str | Path) -> Features:
    """The features that `save_features` wrote.

    Raises ValueError for another suffix and for files that it did not write.
    """
    values, labels, names, facts = _read(Path(path))
    class_names = facts["class_names"]
    return Features(
        values=values,
        labels=labels,
        names=names,
        class_names=None if class_names is None else tuple(class_names),
        pool=facts["pool"],
        unreadable=[(name, reason) for name, reason in facts["unreadable"]],
    )


def load_facts(path: str | Path) -> dict[str, Any]:
    """How the features of a file were made.

    Keys: `pool`, `shape`, `class_names`, `preprocess`, `weights_sha256`, `unreadable`, `format`.
    """
    return _read(Path(path))[3]


def _collect(
    source: ImageSource | StreamSource,
    preprocess: Preprocess,
    encode: Callable[[Tensor], Tensor],
    pool: str,
    batch_size: int,
    progress: Progress | None,
) -> Features:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    total = source.count() if isinstance(source, StreamSource) else len(source)
    values, filled, done = torch.empty(0), 0, 0
    names: list[str] = []
    labels: list[int] = []
    unreadable: list[tuple[str, str]] = []
    entries = _entries(source)
    while batch := list(islice(entries, batch_size)):
        samples = [entry for entry in batch if isinstance(entry, Sample)]
        unreadable += [(e.name, e.reason) for e in batch if isinstance(e, UnreadableImage)]
        if samples:
            images = [to_channels(sample.image, preprocess.channels) for sample in samples]
            with torch.inference_mode():
                rows = encode(prepare(images, preprocess)).float().cpu()
            if not filled:  # one allocation: joining pieces at the end would need twice the memory
                values = torch.empty((total, *rows.shape[1:]))
            values[filled : filled + len(rows)] = rows
            filled += len(rows)
            names += [sample.name for sample in samples]
            labels += [UNLABELLED if s.label is None else s.label for s in samples]
        done += len(batch)
        if progress is not None:
            progress(done, total)
    if not filled:
        reasons = "".join(f"; {name}: {reason}" for name, reason in unreadable[:3])
        raise ValueError(f"none of the {total} images of {source.address} can be read{reasons}")
    return Features(
        values=values[:filled],
        labels=torch.tensor(labels) if any(label != UNLABELLED for label in labels) else None,
        names=names,
        class_names=source.class_names,
        pool=pool,
        unreadable=unreadable,
    )


def _entries(source: ImageSource | StreamSource) -> Iterator[Sample | UnreadableImage]:
    if isinstance(source, StreamSource):
        yield from source.samples(epoch=0, seed=0, shuffle=False)
        return
    for index in range(len(source)):
        try:
            yield source.load(index)
        except UnreadableImage as error:
            yield error


def _checked(features: Features, role: str) -> Tensor:
    values, labels = features.values, features.labels
    if labels is None:
        raise ValueError(f"the {role} images have no labels; use a labelled source")
    if values.ndim != 2:
        raise ValueError(
            f"the {role} features have shape {tuple(values.shape)}; one row per image is needed:"
            " extract with pool 'mean' or 'cls'"
        )
    if not len(values):
        raise ValueError(f"the {role} set is empty")
    missing = int((labels < 0).sum())
    if missing:
        raise ValueError(f"{missing} of {len(labels)} {role} images have no label; leave them out")
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"the {role} features of {features.names[row]} are not finite")
    return labels


def _write_safetensors(features: Features, facts: str, path: Path) -> None:
    from safetensors.torch import save_file

    # The header of the format is limited in size, so that many names need a tensor of their own.
    names = np.frombuffer(json.dumps(features.names).encode(), dtype=np.uint8).copy()
    tensors = {"values": features.values.contiguous(), "names_json": torch.from_numpy(names)}
    if features.labels is not None:
        tensors["labels"] = features.labels
    save_file(tensors, path, metadata={FACTS: facts})


def _write_npz(features: Features, facts: str, path: Path) -> None:
    arrays = {
        "values": features.values.numpy(),
        "names": np.array(features.names, dtype=np.str_),
        FACTS: np.array(facts),
    }
    if features.labels is not None:
        arrays["labels"] = features.labels.numpy()
    with path.open("wb") as file:  # given a name, numpy would add its suffix
        np.savez(file, allow_pickle=False, **arrays)


def _write_parquet(features: Features, facts: str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = features.values.reshape(len(features.values), -1).contiguous()
    columns = {"name": pa.array(features.names, pa.string())}
    if features.labels is not None:
        columns["label"] = pa.array(features.labels.numpy(), pa.int64())
    columns["values"] = pa.FixedSizeListArray.from_arrays(
        pa.array(rows.numpy().reshape(-1)), rows.shape[1]
    )
    pq.write_table(pa.table(columns).replace_schema_metadata({FACTS: facts}), path)


def _read(path: Path) -> tuple[Tensor, Tensor | None, list[str], dict[str, Any]]:
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: features are read from {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        values, labels, names, text = reader(path)
        facts = json.loads(text)
        values = values.reshape(facts["shape"])
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is no feature file of ours: {reason}") from error
    return values, labels, names, facts


def _read_safetensors(path: Path) -> tuple[Tensor, Tensor | None, list[str], str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = json.loads(bytes(file.get_tensor("names_json").numpy()))
        labels = file.get_tensor("labels") if "labels" in file.keys() else None  # noqa: SIM118
        return file.get_tensor("values"), labels, names, file.metadata()[FACTS]


def _read_npz(path: Path) -> tuple[Tensor, Tensor | None, list[str], str]:
    with np.load(path, allow_pickle=False) as file:
        labels = torch.from_numpy(file["labels"]) if "labels" in file else None
        return torch.from_numpy(file["values"]), labels, file["names"].tolist(), str(file[FACTS])


def _read_parquet(path: Path) -> tuple[Tensor, Tensor | None, list[str], str]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    values = table["values"].combine_chunks().flatten().to_numpy()
    labels = None
    if "label" in table.column_names:
        labels = torch.from_numpy(table["label"].to_numpy().copy())
    facts = table.schema.metadata[FACTS.encode()].decode()
    return torch.from_numpy(values.copy()), labels, table["name"].to_pylist(), facts
