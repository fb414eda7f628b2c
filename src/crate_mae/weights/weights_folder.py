"""Weights folders: `model.safetensors`, `config.json`, `preprocess.json`; written in one step.

A folder alone rebuilds its model. What other libraries read lies in it, too (`one_folder`).
Nothing in it is ever unpickled, its sizes are checked against the tensors before anything is
allocated, and a load that is not complete is an error.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from crate_mae.common.files import file_hash, read_json_object, replacing_tree, user_path
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.depict import CrateSegmenter
from crate_mae.models.encoder import Encoder
from crate_mae.weights.one_folder import (
    CLASSES,
    MODEL_TYPE,
    OWN_KEYS,
    PROCESSOR,
    for_every_library,
    processor_keys,
)
from crate_mae.weights.segmenter_head import read_head
from crate_mae.weights.shipped import (
    CONFIG,
    FILES,
    PREPROCESS,
    TENSORS,
    check_weights_name,
    shipped_folder,
)
from crate_mae.weights.tensors import (
    IncompleteWeightsError,
    WithoutInitialValues,
    check_finite,
    check_match,
    load_exactly,
    not_complete,
    read_safetensors,
    write_safetensors,
)

LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # left behind by file managers
FORMAT = "crate-mae/1"
WITH_DECODER = "use weights of masked pre-training"
logger = logging.getLogger(__name__)


def save_model(
    model: CrateMAE | CrateEncoder,
    folder: str | Path,
    *,
    preprocess: Preprocess | None = None,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding the model's weights, configuration and preprocessing.

    `preprocess` is how its images were prepared, where the model does not hold it yet (it is left
    as it is). Where neither says, pixels scaled to [0, 1], mean 0 and std 1, are assumed, and that
    is logged: features of images prepared otherwise than in training are worth little.
    Written beside the target and moved there whole, never half of one. A crash in the instant in
    which an old folder makes way leaves it beside, under a hidden name, until the next save moves
    it back. `state` replaces the
    model's own tensors (gathered by a sharded trainer, say). Raises FileExistsError when the folder
    has content, unless `overwrite` is set and the content is an older weights folder alone, and
    ValueError for a model with parts that its configuration does not build.
    """
    described = _describe(model)
    if state is None:
        _check_rebuilds(model, described)
    known = model.preprocess if preprocess is None else preprocess
    known.check(model.config)
    saved = save_described(
        model,
        folder,
        for_every_library(described, model.config, known),
        known,
        overwrite=overwrite,
        state=state,
        others={PROCESSOR: processor_keys(known)} if model.kind in CLASSES else {},
    )
    if known is model.assumed_preprocess:
        logger.warning(
            "%s: that images are scaled to [0, 1] and no more (mean 0, std 1) is assumed; if yours"
            " were normalised, give preprocess=Preprocess(size=..., channels=..., mean=...,"
            " std=...) to build_model or save_model",
            folder,
        )
    return saved


def save_described(
    model: nn.Module,
    folder: str | Path,
    described: dict[str, Any],
    preprocess: Preprocess,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
    others: Mapping[str, dict[str, Any]] | None = None,
) -> Path:
    """The folder, now holding a module's tensors, what describes it, and its preprocessing.

    As `save_model`, for a module of any kind; `others` are further JSON files by name.
    """
    tensors = {
        key: value.detach().to("cpu").contiguous()
        for key, value in (model.state_dict() if state is None else state).items()
    }
    with torch.device("meta"):
        check_match({k: tuple(v.shape) for k, v in tensors.items()}, model, origin="this state")
    with replacing_folder(folder, overwrite=overwrite) as fresh:
        write_safetensors(tensors, fresh / TENSORS)
        (fresh / CONFIG).write_bytes(_json(described))
        (fresh / PREPROCESS).write_bytes(_json(preprocess.to_dict()))
        for name, values in (others or {}).items():
            (fresh / name).write_bytes(_json(values))
    return user_path(folder)


@contextlib.contextmanager
def replacing_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder to write weights files into; flushed and moved to `folder` whole at the end.

    Raises FileExistsError as `save_model` does. When the block raises, nothing has changed.
    """
    folder = user_path(folder).resolve()  # a link stays, what it names is written
    _check_free(folder, overwrite=overwrite)
    with replacing_tree(folder) as fresh:
        yield fresh


def load_model(
    folder_or_hub_id: str | Path, *, revision: str | None = None
) -> CrateMAE | CrateEncoder:
    """The model, in eval mode, of a weights folder, run folder, shipped name or Hub repository.

    Built from the folder alone, on the CPU, in float32 as saved. A `name/repository` that is no
    folder here is fetched from the Hub (three files, no code), at `revision` when given.

    Raises FileNotFoundError when there is no such folder or a file of it is missing,
    IncompleteWeightsError when tensors are missing, unexpected or re-shaped (an encoder-only file
    never yields a random decoder), and ValueError for damaged files, unknown configuration keys and
    weights that are not finite.
    """
    folder, described = find_weights(folder_or_hub_id, revision=revision)
    model = load_crate(folder, described)
    check_finite(model.named_parameters(), origin=str(folder / TENSORS))
    return model


def load_crate(folder: Path, described: dict[str, Any]) -> CrateMAE | CrateEncoder:
    """The model, in eval mode, of a folder and what its `config.json` holds; as `load_model`.

    Whether its values are finite is left to whoever uses them.
    """
    check_complete(folder, FILES)
    model = _build(folder, described)
    load_exactly(model, read_safetensors(folder / TENSORS), origin=str(folder / TENSORS))
    return model.eval()


def load_autoencoder(folder_or_hub_id: str | Path) -> CrateMAE:
    """The CrateMAE of a weights folder; ValueError when the folder holds no decoder."""
    model = load_model(folder_or_hub_id)
    if model.kind != CrateMAE.kind:
        raise ValueError(without_decoder(folder_or_hub_id, model.kind))
    return cast("CrateMAE", model)


def without_decoder(name: str | Path, kind: str) -> str:
    """The words for weights of a kind that cannot complete images."""
    held = {"Classifier": "a classifier", "Segmenter": "a segmenter"}
    whose = next((said for end, said in held.items() if kind.endswith(end)), "an encoder alone")
    return f"{name} holds {whose}, which has no decoder; {WITH_DECODER}"


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
    folder, text = user_path(name), str(name)
    if folder.is_dir():
        if not (folder / CONFIG).exists() and (folder / "weights" / CONFIG).exists():
            folder = folder / "weights"
        return folder, str(folder)
    shipped = shipped_folder(text)
    if shipped is not None and not folder.exists():
        return shipped, f"the shipped model {text}"
    if folder.exists():
        raise FileNotFoundError(f"no weights at {text}: it is a file, and weights are a folder")
    check_weights_name(text)
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


def _build(folder: Path, described: dict[str, Any]) -> CrateMAE | CrateEncoder:
    """A model of a folder's configuration with its values still unset.

    Its tensors are known to fit before memory is taken, and no random number is drawn.
    """
    if described.get("model_type", MODEL_TYPE) != MODEL_TYPE:
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
        with WithoutInitialValues():
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
    # As to_empty, which for tensors on the meta device imports torch's compiler.
    model._apply(  # type: ignore[no-untyped-call]
        lambda meta: torch.empty(meta.shape, dtype=meta.dtype, device="cpu")
    )
    model.preprocess = preprocess
    return model


def _every_field(values: dict[str, Any], owner: type) -> dict[str, Any]:
    """`values` when they name every field of the dataclass: a default is not what was trained.

    Fields that came later (`ADDED`) may be absent: their default is what was meant before.
    """
    later: frozenset[str] = getattr(owner, "ADDED", frozenset())
    missing = [f.name for f in fields(owner) if f.name not in values and f.name not in later]
    if missing:
        raise ValueError(f"{owner.__name__} lacks {', '.join(missing)}")
    return values


def _construct(described: dict[str, Any], config: ModelConfig) -> CrateMAE | CrateEncoder:
    kind = described.get("model")
    if kind == CrateMAE.kind:
        return CrateMAE(config)
    if kind == CrateEncoder.kind:
        return CrateEncoder(config)
    if kind == CrateClassifier.kind:
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
    if kind == CrateSegmenter.kind:
        decoder, classes = read_head(_section(described, "segmenter"), dim=config.dim)
        return CrateSegmenter(Encoder(config), decoder, classes=classes)
    known = ", ".join(
        each.kind for each in (CrateMAE, CrateEncoder, CrateClassifier, CrateSegmenter)
    )
    raise ValueError(f"{CONFIG} names model {kind!r}; known are {known}")


def _check_rebuilds(model: CrateMAE | CrateEncoder, described: dict[str, Any]) -> None:
    """Raise ValueError where loading would put a part of another class in the place of one."""
    with WithoutInitialValues():
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


def shared_files(folder: Path, extra: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """`config.json` and `preprocessor_config.json` of a folder as every library reads them.

    `extra` are further keys of both. Empty for models of other families, whose own files serve.
    """
    described = read_json_object(folder / CONFIG)
    if described.get("format") != FORMAT or kind_of(described) not in CLASSES:
        return {}
    own = {key: described[key] for key in OWN_KEYS if key in described}
    config = ModelConfig.from_dict(_section(described, "config"))
    preprocess = Preprocess.from_dict(read_json_object(folder / PREPROCESS))
    whole = for_every_library(own, config, preprocess)
    return {
        CONFIG: _json({**whole, **(extra or {})}),
        PROCESSOR: _json({**processor_keys(preprocess), **(extra or {})}),
    }


def kind_of(described: dict[str, Any]) -> Any:
    """Which kind of model a `config.json` says it describes; as it stands there, or None.

    For models of other families it is transformers' `model_type`.
    """
    other = described.get("model_type", MODEL_TYPE)
    return described.get("model") if other == MODEL_TYPE else other


def _describe(model: CrateMAE | CrateEncoder) -> dict[str, Any]:
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
        raise ValueError(not_complete(path, path.name, str(error))) from error


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
    own = (*FILES, PROCESSOR, *LITTER)
    foreign = sorted(item.name for item in folder.iterdir() if item.name not in own)
    if foreign:
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(foreign[:3])}); name an empty or new folder"
        )
    if any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} holds weights; name another folder or pass overwrite=True")
