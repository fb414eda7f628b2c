"""A recipe of any kind and settings beside it, parsed as the run itself would parse them."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from crate_mae.data.labelled import LabelledDataConfig
from crate_mae.data.module import DataConfig
from crate_mae.plan.subject import RunSettings
from crate_mae.training.config import (
    FinetuneConfig,
    FinetuneOptimConfig,
    OptimConfig,
    PretrainConfig,
)
from crate_mae.training.folder import CONFIG, load_config_values, load_settings
from crate_mae.training.parse import parse_finetune, parse_pretrain, recipe


def parse_recipe(name: str, words: Sequence[str] = ()) -> RunSettings:
    """The configuration of a recipe file, a shipped recipe's name or a run folder.

    `words` are settings as on the command line of the run, and win over the recipe. Raises
    FileNotFoundError for an unknown recipe, with the nearest name, and ValueError for a file
    without settings; faults in settings end the process with status 2 and a message.
    """
    path = Path(name)
    if path.is_dir() and (path / CONFIG).is_file():
        file, values = path / CONFIG, load_config_values(path)
    else:
        file = path if path.is_file() else recipe(name)
        values = load_settings(file)
    arguments = ["--config", str(file), *words]
    if is_supervised(values, words):
        return parse_finetune(arguments)[0]
    return parse_pretrain(arguments)[0]


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
