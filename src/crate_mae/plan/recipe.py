"""A recipe of any kind and settings beside it, parsed as the run itself would parse them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from crate_mae.batches.config import VALIDATION_SEED, DataConfig, LabelledDataConfig
from crate_mae.batches.opening import check_first_image
from crate_mae.common.files import user_path
from crate_mae.common.hints import option_value
from crate_mae.evaluation.backbones import load_backbone
from crate_mae.models.config import ModelConfig
from crate_mae.plan.real_step import RunSettings
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource, Source
from crate_mae.sources.splits import held_out_count, split_off
from crate_mae.sources.torchvision_datasets import open_torchvision
from crate_mae.training.config import (
    FinetuneConfig,
    FinetuneOptimConfig,
    OptimConfig,
    PretrainConfig,
)
from crate_mae.training.finetune import TASKS
from crate_mae.training.parse import parse_finetune, parse_pretrain, recipe
from crate_mae.training.run_folder import CONFIG, check_start, load_config_values, load_settings
from crate_mae.training.starting_weights import check_origin, starting_tensors


def parse_recipe(name: str, words: Sequence[str] = ()) -> RunSettings:
    """The configuration of a recipe file, a shipped recipe's name or a run folder.

    `words` are settings as on the command line of the run, and win over the recipe. Raises
    FileNotFoundError for an unknown recipe, with the nearest name, and ValueError for a file
    without settings; faults in settings end the process with status 2 and a message.
    """
    path = user_path(name)
    if path.is_dir() and (path / CONFIG).is_file():
        file, values = path / CONFIG, load_config_values(path)
    else:
        file = path if path.is_file() else recipe(name)
        values = load_settings(file)
    arguments = ["--config", str(file), *words]
    if is_supervised(values, words):
        return parse_finetune(arguments)[0]
    return parse_pretrain(arguments)[0]


def check_whole_command(config: RunSettings, words: Sequence[str], *, resume: bool = False) -> None:
    """Raise what the run itself would raise for its folder and the weights that it starts from."""
    out = option_value(words, "--out")
    if out is not None and not resume:
        check_start(config, user_path(out), resume=False, again="--init-from")
    if isinstance(config, PretrainConfig):
        init_from = option_value(words, "--init-from")
        check_origin(config, init_from)
        if init_from is not None:
            starting_tensors(config, init_from)


def is_supervised(values: dict[str, Any], words: Sequence[str] = ()) -> bool:
    """Whether nested settings, or options beside them, are of a supervised run alone."""
    given = set(values)
    for section, part in values.items():
        given |= {f"{section}.{key}" for key in part} if isinstance(part, dict) else set()
    for word in words:
        if word.startswith("--"):
            given.add(word[2:].partition("=")[0])
    return not given.isdisjoint(_SUPERVISED_ONLY)


def _names(owner: type, prefix: str = "") -> set[str]:
    return {prefix + field.name for field in fields(owner)}


_SUPERVISED_ONLY = (
    {"from-scratch"}
    | (_names(FinetuneConfig) - _names(PretrainConfig))
    | (_names(LabelledDataConfig, "data.") - _names(DataConfig, "data."))
    | (_names(FinetuneOptimConfig, "optim.") - _names(OptimConfig, "optim."))
)


@dataclass(frozen=True, kw_only=True)
class Images:
    """The training images of a run."""

    count: int
    origin: str
    """Where the count comes from."""
    classes: int | None = None
    """Classes of a supervised run."""


def count_images(
    config: PretrainConfig | FinetuneConfig,
    *,
    model: ModelConfig | None = None,
    size: tuple[int, int] | None = None,
) -> Images:
    """The training images that a run of this configuration would have.

    Sources are opened as the run opens them, with the same images held out; of a `model` (and
    `size`, height and width) the first image is looked at, as the run does. Nothing else is decoded
    and nothing downloaded. Raises FileNotFoundError for data that are not on this machine, naming
    the two ways on, and what opening them raises; ValueError for images that do not suit the model
    and for classes that the weights do not have.
    """
    try:
        _check_present(config.data)
        if isinstance(config, FinetuneConfig):
            task = TASKS[config.task]
            images = task.open(config, None, None)
            _check(images.train, model, size)
            if config.weights is not None and not config.new_head:
                task.check_head(load_backbone(config.weights)[0], images, config)
            return Images(
                count=len(images.train), origin=images.train.address,
                classes=len(images.class_names),
            )  # fmt: skip
        return _unlabelled(config.data, model, size)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; plan without the data by --num-images N, or say where they are with"
            " --data.source"
        ) from error


def _check(source: Source, model: ModelConfig | None, size: tuple[int, int] | None) -> None:
    if model is not None and isinstance(source, ImageSource):
        check_first_image(source, model, size or model.image_hw)


def _unlabelled(
    data: DataConfig, model: ModelConfig | None, size: tuple[int, int] | None
) -> Images:
    train: Source = open_source(
        data.source, split=data.split, limit=data.limit, reading=data.reading
    )
    if holds_out(data) and isinstance(train, ImageSource):
        train, _ = split_off(train, data.val_share, VALIDATION_SEED, data.val_limit)
    _check(train, model, size)
    return Images(count=len(train), origin=train.address)


def holds_out(data: DataConfig) -> bool:
    """Whether a share of the training images validates, as no others are named for that."""
    return data.val_share > 0 and data.val_source is None and data.val_split is None


def trained_of(data: DataConfig, images: int) -> int:
    """How many of so many images train: those that `split_off` leaves; 0 where it leaves none.

    A run on classes holds a share of each class out instead, which may be a few more or fewer.
    """
    if not holds_out(data):
        return images
    return max(0, images - held_out_count(images, data.val_share, data.val_limit))


def _check_present(data: DataConfig) -> None:
    """Raise FileNotFoundError for an address that opening would download."""
    named = {data.source: data.split}
    if data.val_source is not None:
        named[data.val_source] = data.val_split
    if isinstance(data, LabelledDataConfig) and data.test_source is not None:
        named[data.test_source] = data.test_split
    for address, split in named.items():
        scheme, _, rest = address.partition(":")
        if scheme == "torchvision":
            open_torchvision(rest, split, download=False)
        if scheme == "hf":
            raise FileNotFoundError(f"{address} may have to be fetched, which planning does not do")
