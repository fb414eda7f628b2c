"""Feature files: rows, names, labels and how they were made.

Written as safetensors and, for other programs, as npz or parquet; read as safetensors alone, and
out of folders of parts.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crate_mae.common.files import check_file_target, replacing, user_path
from crate_mae.evaluation.features import Features
from crate_mae.models.config import Preprocess
from crate_mae.weights.tensors import check_safetensors, write_safetensors

READABLE = ".safetensors"
SUFFIXES = (READABLE, ".npz", ".parquet")
"""Of the files that are written."""
FORMAT = "crate-mae-features/1"
FACTS = "crate_mae"
FACT_KEYS = ("pool", "class_names", "preprocess", "weights_sha256", "unreadable")

logger = logging.getLogger(__name__)


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path, once features can be saved there: call it before any work.

    Raises ValueError for a suffix other than .safetensors, .npz or .parquet, and FileExistsError
    for a file that is there, unless `overwrite` is set.
    """
    return check_file_target(path, SUFFIXES, what="features", overwrite=overwrite)


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
        "layer": features.layer,
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
    """The features of a .safetensors file that `save_features` wrote, or of a folder of parts.

    Raises FileNotFoundError, and ValueError for another suffix, for files that it did not write,
    and for a folder that is not complete.
    """
    path = user_path(path)
    if path.is_dir():
        from crate_mae.evaluation.feature_parts import load_parts

        return load_parts(path)
    values, labels, names, facts = _read(path)
    class_names = facts["class_names"]
    return Features(
        values=values,
        labels=labels,
        names=names,
        class_names=None if class_names is None else tuple(class_names),
        pool=facts["pool"],
        layer=facts.get("layer"),
        unreadable=[(name, reason) for name, reason in facts["unreadable"]],
    )


def merge_parts(folder: str | Path, path: str | Path, *, overwrite: bool = False) -> Features:
    """The features of a complete folder of parts, which `path` now holds as `save_features` does.

    They are in memory meanwhile. Raises as `check_target`, before anything is read, and as
    `load_features`.
    """
    path = check_target(path, overwrite=overwrite)
    facts = load_facts(folder)
    found = load_features(folder)
    save_features(
        found,
        path,
        preprocess=Preprocess.from_dict(facts["preprocess"]),
        weights_hash=facts["weights_sha256"],
        overwrite=overwrite,
    )
    return found


def load_facts(path: str | Path) -> dict[str, Any]:
    """How the features of a file, or of a folder of parts, were made.

    Keys: `pool`, `layer`, `shape`, `class_names`, `preprocess`, `weights_sha256`, `unreadable`,
    `format`.
    """
    path = user_path(path)
    if path.is_dir():
        from crate_mae.evaluation.feature_parts import FeatureParts

        return FeatureParts.open(path).about()
    return _read(path)[3]


def load_pair(train: str | Path, test: str | Path) -> tuple[Features, Features, dict[str, Any]]:
    """(training features, test features, facts of the training features) of two files.

    Test images that are training images as well are told of in the log, and that neither file says
    which weights made it. Raises ValueError when the files were not made alike: by the same
    weights, preprocessing, pool and layer, of sources with the same classes.
    """
    facts = load_facts(train), load_facts(test)
    keys = ("weights_sha256", "pool", "layer", "preprocess")
    differ = [key for key in keys if facts[0].get(key) != facts[1].get(key)]
    if differ:
        raise ValueError(
            f"{train} and {test} cannot be compared: they differ in {', '.join(differ)};"
            " extract both with the same weights, pool and layer, from sources of the same classes"
        )
    if facts[0].get("weights_sha256") is None:
        logger.warning(
            "neither %s nor %s says which weights made it: they are compared as if made by the"
            " same; extract both again if that is not sure",
            train, test,
        )  # fmt: skip
    known, unknown = load_features(train), load_features(test)
    unknown = _with_classes_of(known, unknown, train, test)
    trained = set(_rows(known))
    shared = sum(row in trained for row in _rows(unknown))
    if shared:
        logger.warning(
            "%d of %d test images are training images: extract another split to test on",
            shared, len(unknown.names),
        )  # fmt: skip
    return known, unknown, facts[0]


def _with_classes_of(
    known: Features, unknown: Features, train: str | Path, test: str | Path
) -> Features:
    """The test features with the class numbers of the training ones, matched by name.

    Raises ValueError for test images of classes that the training images do not have.
    """
    names, others = known.class_names, unknown.class_names
    if names == others or unknown.labels is None:
        return unknown
    if names is None or others is None:
        raise ValueError(f"{train} and {test} cannot be compared: one of them has no classes")
    place = {name: number for number, name in enumerate(names)}
    used = {others[label] for label in unknown.labels.tolist() if label >= 0}
    if strange := sorted(used - set(names)):
        raise ValueError(
            f"{test} and {train} cannot be compared: they differ in class_names; the first has"
            f" images of {', '.join(strange[:10])}, the second none"
        )
    numbers = torch.tensor([*(place.get(name, -1) for name in others), -1])  # -1: no label
    return replace(unknown, labels=numbers[unknown.labels], class_names=names)


def _rows(features: Features) -> Iterator[tuple[str, bytes]]:
    """Name and digest of every row: other images may have the name, other names the row."""
    for name, row in zip(features.names, features.values.contiguous(), strict=True):
        yield name, hashlib.sha256(row.numpy().tobytes()).digest()


def _write_safetensors(features: Features, facts: str, path: Path) -> None:
    # The header of the format is limited in size, so that many names need a tensor of their own.
    names = np.frombuffer(json.dumps(features.names).encode(), dtype=np.uint8).copy()
    tensors = {"values": features.values.contiguous(), "names_json": torch.from_numpy(names)}
    if features.labels is not None:
        tensors["labels"] = features.labels
    write_safetensors(tensors, path, metadata={FACTS: facts})


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
    # Names of files need not be UTF-8, which parquet asks for.
    names = [name.encode("utf-8", "backslashreplace").decode() for name in features.names]
    columns = {"name": pa.array(names, pa.string())}
    if features.labels is not None:
        columns["label"] = pa.array(features.labels.numpy(), pa.int64())
    columns["values"] = pa.FixedSizeListArray.from_arrays(
        pa.array(rows.numpy().reshape(-1)), rows.shape[1]
    )
    pq.write_table(pa.table(columns).replace_schema_metadata({FACTS: facts}), path)


def _read(path: Path) -> tuple[Tensor, Tensor | None, list[str], dict[str, Any]]:
    if path.suffix.lower() != READABLE:
        raise ValueError(
            f"{path}: features are read from {READABLE} files; extract them again with --out"
            f" {path.with_suffix(READABLE).name}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        values, labels, names, text = _read_safetensors(path)
        facts = json.loads(text)
        values = values.reshape(facts["shape"])
        _check_contents(values, labels, names, facts)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is no feature file of ours: {reason}") from error
    return values, labels, names, facts


def _check_contents(
    values: Tensor, labels: Tensor | None, names: list[str], facts: dict[str, Any]
) -> None:
    if facts.get("format") != FORMAT:
        raise ValueError(f"format {facts.get('format')!r} is not {FORMAT!r}")
    missing = [key for key in FACT_KEYS if key not in facts]
    if missing:
        raise ValueError(f"it does not say its {', '.join(missing)}")
    if values.dtype != torch.float32:
        raise ValueError(f"values are {values.dtype}, not torch.float32")
    if len(names) != len(values):
        raise ValueError(f"{len(names)} names for {len(values)} rows")
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != values.shape[:1]):
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}, not torch.int64 ({len(values)},)"
        )


def _read_safetensors(path: Path) -> tuple[Tensor, Tensor | None, list[str], str]:
    from safetensors import safe_open

    check_safetensors(path)
    with safe_open(path, "pt") as file:
        names = json.loads(bytes(file.get_tensor("names_json").numpy()))
        labels = file.get_tensor("labels") if "labels" in file.keys() else None  # noqa: SIM118
        return file.get_tensor("values"), labels, names, file.metadata()[FACTS]
