"""Weights folders: `model.safetensors`, `config.json`, `preprocess.json`; written in one step.

A folder alone rebuilds its model. Nothing in it is ever unpickled, its sizes are checked against
the tensors before anything is allocated, and a load that is not complete is an error.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from crate_mae.common.files import file_hash, read_json_object
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.weights.shipped import SHIPPED, shipped_folder
from crate_mae.weights.tensors import (
    IncompleteWeightsError,
    check_match,
    load_exactly,
    read_safetensors,
)

TENSORS, CONFIG, PREPROCESS = "model.safetensors", "config.json", "preprocess.json"
FILES = (TENSORS, CONFIG, PREPROCESS)
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # left behind by file managers
FORMAT = "crate-mae/1"
HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
"""The shape of a name on the Hub, OWNER/NAME."""


def save_model(
    model: CrateMAE | CrateClassifier,
    folder: str | Path,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding the model's weights, configuration and preprocessing.

    Written beside the target and moved there whole, never half of one. A crash in the instant in
    which an old folder makes way leaves it beside, under a hidden name. `state` replaces the
    model's own tensors (gathered by a sharded trainer, say). Raises FileExistsError when the folder
    has content, unless `overwrite` is set and the content is an older weights folder alone, and
    ValueError for a model with parts that its configuration does not build.
    """
    described = _describe(model)
    if state is None:
        _check_rebuilds(model, described)
    return save_described(
        model, folder, described, model.preprocess, overwrite=overwrite, state=state
    )


def save_described(
    model: nn.Module,
    folder: str | Path,
    described: dict[str, Any],
    preprocess: Preprocess,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding a module's tensors, what describes it, and its preprocessing.

    As `save_model`, for a module of any kind.
    """
    tensors = {
        key: value.detach().to("cpu").contiguous()
        for key, value in (model.state_dict() if state is None else state).items()
    }
    with torch.device("meta"):
        check_match({k: tuple(v.shape) for k, v in tensors.items()}, model, origin="this state")
    with replacing_folder(folder, overwrite=overwrite) as fresh:
        # One entry only: with two their order is random, and so would be the file's hash.
        (fresh / TENSORS).write_bytes(serialise(tensors, metadata={"format": "pt"}))
        (fresh / CONFIG).write_bytes(_json(described))
        (fresh / PREPROCESS).write_bytes(_json(preprocess.to_dict()))
    return Path(folder)


@contextlib.contextmanager
def replacing_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder to write weights files into; flushed and moved to `folder` whole at the end.

    Raises FileExistsError as `save_model` does. When the block raises, nothing has changed.
    """
    folder = Path(folder).resolve()  # a link stays, what it names is written
    _check_free(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        yield fresh
        for path in fresh.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_model(
    folder_or_hub_id: str | Path, *, revision: str | None = None
) -> CrateMAE | CrateClassifier:
    """The model, in eval mode, of a weights folder, run folder, shipped name or Hub repository.

    Built from the folder alone, on the CPU, in float32 as saved. A `name/repository` that is no
    folder here is fetched from the Hub (three files, no code), at `revision` when given.

    Raises FileNotFoundError when there is no such folder or a file of it is missing,
    IncompleteWeightsError when tensors are missing, unexpected or re-shaped (an encoder-only file
    never yields a random decoder), and ValueError for damaged files and unknown configuration keys.
    """
    folder, described = find_weights(folder_or_hub_id, revision=revision)
    return load_crate(folder, described)


def load_crate(folder: Path, described: dict[str, Any]) -> CrateMAE | CrateClassifier:
    """The model, in eval mode, of a folder and what its `config.json` holds; as `load_model`."""
    check_complete(folder, FILES)
    model = _build(folder, described)
    load_exactly(model, read_safetensors(folder / TENSORS), origin=str(folder / TENSORS))
    return model.eval()


def load_autoencoder(folder_or_hub_id: str | Path) -> CrateMAE:
    """The CrateMAE of a weights folder; ValueError when the folder holds a classifier."""
    model = load_model(folder_or_hub_id)
    if model.kind != CrateMAE.kind:
        raise ValueError(
            f"{folder_or_hub_id} holds a classifier, which has no decoder; use pre-trained weights"
        )
    return cast("CrateMAE", model)


def find_weights(name: str | Path, *, revision: str | None = None) -> tuple[Path, dict[str, Any]]:
    """(local folder, content of its `config.json`) of weights of any kind.

    `name` is a weights folder, a run folder (whose `weights` are meant), a shipped model
    (`crate-mae weights`) or a Hub repository, OWNER/NAME, from which our three files are fetched;
    they are looked for in this order. Raises FileNotFoundError naming what is missing and, for the
    Hub, the way without a network; ValueError for a `config.json` that is no JSON object.
    """
    folder, origin = _located(name, revision)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{origin} is no weights folder: {_missing(folder, FILES)} missing")
    return folder, read_json_object(folder / CONFIG)


def local_weights_folder(folder_or_hub_id: str | Path, *, revision: str | None = None) -> Path:
    """The local folder that holds a model's three files, fetched from the Hub where needed.

    As `find_weights`; raises FileNotFoundError when one of the three is missing.
    """
    folder, _ = find_weights(folder_or_hub_id, revision=revision)
    check_complete(folder, FILES)
    return folder


def check_complete(folder: Path, names: Sequence[str]) -> None:
    """Raise FileNotFoundError naming the files that a folder lacks."""
    missing = _missing(folder, names)
    if missing:
        raise FileNotFoundError(f"{folder} is no weights folder: {missing} missing")


def _missing(folder: Path, names: Sequence[str]) -> str:
    return ", ".join(name for name in names if not (folder / name).is_file())


def _located(name: str | Path, revision: str | None) -> tuple[Path, str]:
    """(folder, how to speak of it), before it is known what the folder holds."""
    folder, text = Path(name), str(name)
    if folder.is_dir():
        if not (folder / CONFIG).exists() and (folder / "weights" / CONFIG).exists():
            folder = folder / "weights"
        return folder, str(folder)
    shipped = shipped_folder(text)
    if shipped is not None and not folder.exists():
        return shipped, f"the shipped model {text}"
    if folder.exists() or not re.fullmatch(HUB_NAME, text):
        raise FileNotFoundError(
            f"no weights at {text}: expected a folder with {', '.join(FILES)}, a run folder, a"
            f" shipped model ({', '.join(SHIPPED)}), or a Hub repository as owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        fetched = Path(snapshot_download(text, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{text} is no local folder, and the Hub did not give it: {reason}. Without a network,"
            f" copy {', '.join(FILES)} into a folder and pass its path."
        ) from error
    if missing := _missing(fetched, FILES):
        raise FileNotFoundError(
            f"the Hub repository {text} is no weights folder: {missing} missing"
        )
    return fetched, f"the Hub repository {text}"


def weights_hash(folder_or_hub_id: str | Path) -> str:
    """The SHA-256 (hex) of a weights folder's tensor file."""
    return file_hash(local_weights_folder(folder_or_hub_id) / TENSORS)


def _build(folder: Path, described: dict[str, Any]) -> CrateMAE | CrateClassifier:
    """A model of a folder's configuration with its values still unset.

    Its tensors are known to fit before memory is taken, and no random number is drawn.
    """
    if "model_type" in described:
        raise ValueError(
            f"{folder} holds a model of type {described['model_type']!r}, and this needs CRATE"
            " weights; probe, knn and finetune take both"
        )
    if described.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG}: format is {described.get('format')!r},"
            f" this version reads {FORMAT!r}"
        )
    try:
        config = ModelConfig.from_dict(_every_field(_section(described, "config"), ModelConfig))
        preprocess = Preprocess.from_dict(
            _every_field(read_json_object(folder / PREPROCESS), Preprocess)
        )
        shapes = _tensor_shapes(folder / TENSORS)
        if len(shapes) < config.depth:
            raise ValueError(f"{len(shapes)} tensors cannot fill {config.depth} layers")
        with torch.device("meta"):
            model = _construct(described, config)
        check_match(shapes, model, origin=str(folder / TENSORS))
    except IncompleteWeightsError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{folder}: {error}") from error
    if preprocess.channels != config.channels:
        raise ValueError(
            f"{folder}: preprocessing for {preprocess.channels} channels,"
            f" model for {config.channels}"
        )
    model.to_empty(device="cpu")
    model.preprocess = preprocess
    return model


def _every_field(values: dict[str, Any], owner: type) -> dict[str, Any]:
    """`values` when they name every field of the dataclass: a default is not what was trained.

    Fields that came later (`ADDED`) may be absent: their default is what was computed before.
    """
    later: frozenset[str] = getattr(owner, "ADDED", frozenset())
    missing = [f.name for f in fields(owner) if f.name not in values and f.name not in later]
    if missing:
        raise ValueError(f"{owner.__name__} lacks {', '.join(missing)}")
    return values


def _construct(described: dict[str, Any], config: ModelConfig) -> CrateMAE | CrateClassifier:
    kind = described.get("model")
    if kind == "CrateMAE":
        return CrateMAE(config)
    if kind == "CrateClassifier":
        head = _section(described, "classifier")
        num_classes, names = head.get("num_classes"), head.get("class_names")
        if type(num_classes) is not int or not isinstance(names, list | None):
            raise ValueError(
                f"{CONFIG}: num_classes must be a whole number and class_names a list or null"
            )
        return CrateClassifier(
            config,
            num_classes=num_classes,
            pool=head.get("pool", ""),
            class_names=None if names is None else tuple(map(str, names)),
        )
    raise ValueError(f"{CONFIG} names model {kind!r}; known are CrateMAE and CrateClassifier")


def _check_rebuilds(model: CrateMAE | CrateClassifier, described: dict[str, Any]) -> None:
    """Raise ValueError where loading would put a part of another class in the place of one."""
    with torch.device("meta"):
        rebuilt = {
            name: type(part) for name, part in _construct(described, model.config).named_modules()
        }
    for name, part in model.named_modules():
        if type(part) is not rebuilt.get(name, type(part)):
            raise ValueError(
                f"{name} is a {type(part).__name__}, and weights alone would be loaded back with a"
                f" {rebuilt[name].__name__} in its place: keep model.state_dict() beside the code"
                " that builds this model"
            )


def _describe(model: CrateMAE | CrateClassifier) -> dict[str, Any]:
    described: dict[str, Any] = {
        "format": FORMAT,
        "model": model.kind,
        "config": model.config.to_dict(),
    }
    return described | model.describe_head()


def _tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is no complete safetensors file: {error}") from error


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key)
    if not isinstance(section, dict):
        raise ValueError(f"{CONFIG} has no object {key!r}")
    return section


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; weights are a folder")
    foreign = sorted(item.name for item in folder.iterdir() if item.name not in (*FILES, *LITTER))
    if foreign:
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(foreign[:3])}); name an empty or new folder"
        )
    if any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} holds weights; name another folder or pass overwrite=True")


def _swap(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    old = aside / folder.name
    try:
        folder.rename(old)
        try:
            fresh.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
