"""YAML recipes and `--key.sub value` into a checked configuration."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

import crate_mae
from crate_mae.batches.config import (
    Augment,
    Crops,
    DataConfig,
    LabelledDataConfig,
    Masking,
    SupervisedAugment,
)
from crate_mae.common.files import user_path
from crate_mae.common.hints import did_you_mean, option_names, option_value, refuse_arguments
from crate_mae.common.yaml_files import check_yaml
from crate_mae.models.config import PRESETS, ModelConfig
from crate_mae.training.config import (
    CheckpointConfig,
    FinetuneConfig,
    FinetuneOptimConfig,
    OptimConfig,
    PretrainConfig,
    RecordConfig,
    TrainerConfig,
)
from crate_mae.training.objectives import ObjectiveConfig, SimDINOConfig
from crate_mae.training.run_folder import load_config_values, load_settings
from crate_mae.training.segment_config import SegmentConfig
from crate_mae.training.starting_weights import with_starting_architecture
from crate_mae.vitmae.model import ViTMAE
from crate_mae.vitmae.vitmae_folder import architecture_in
from crate_mae.weights.shipped import CONFIG, SHIPPED
from crate_mae.weights.weights_folder import find_weights, kind_of

ConfigT = TypeVar("ConfigT")

_LOAD_YAML: Callable[[str], Any] = get_loader("yaml")


def _load_checked(text: str) -> Any:
    """What the parser makes of a value or of a file that a value names, once that is bounded."""
    if "&" in text or "*" in text or len(text) > 1000:  # short text without aliases stays short
        check_yaml(text, origin="a value, or the file that it names,")
    return _LOAD_YAML(text)


# What is no YAML stays text, as without the bounds.
set_loader("yaml", _load_checked, exceptions=(yaml.YAMLError,))


class SettingsParser(ArgumentParser):
    """A parser whose errors are two lines: what is wrong, with the nearest known name, and help."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the process with status 2."""
        refuse_arguments(self.prog, message, option_names(self))


def recipe(name: str) -> Path:
    """The file of a shipped recipe, such as "digits"; FileNotFoundError naming the known ones.

    Recipes lie inside an installed package and, in a checkout, in its configs folder.
    """
    package = Path(crate_mae.__file__).parent
    folders = (package / "recipes", package.parent.parent / "configs")
    known = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        raise FileNotFoundError(
            f"no recipe file {name!r}{did_you_mean(name, known)}; shipped: {', '.join(known)}"
        )
    return known[name]


@cache  # building takes several times as long as parsing
def pretrain_parser() -> SettingsParser:
    """The parser of every setting of PretrainConfig, with the recipe file as --config."""
    parser = _run_parser(
        "crate-mae pretrain",
        "Pre-training without labels: from images to weights, reconstructions and metrics.",
        example="digits",
    )
    parser.add_argument(
        "--init-from",
        type=str,
        default=None,
        metavar="WEIGHTS",
        help="weights that a new run starts from: weights folder, run folder, shipped model or Hub"
        " repository; their architecture is taken, and --model.image_size, --model.channels and"
        " --model.norm_pix_loss may differ",
    )
    parser.add_class_arguments(PretrainConfig, None)
    return parser


@cache
def finetune_parser() -> SettingsParser:
    """The parser of every setting of FinetuneConfig, with the recipe file as --config."""
    parser = _run_parser(
        "crate-mae finetune",
        "Supervised training of a classifier, or on masks (task segment): crate-mae finetune"
        " WEIGHTS --config RECIPE ..., or --from-scratch in place of WEIGHTS.",
        example="finetune-mae",
    )
    parser.add_argument(
        "--from-scratch",
        type=str,
        default=None,
        metavar="SIZE",
        help="a preset such as tiny, or a run, recipe, weights folder or shipped model whose"
        " architecture is taken; single fields by --model.KEY",
    )
    parser.add_class_arguments(FinetuneConfig, None)
    return parser


def _run_parser(prog: str, description: str, *, example: str) -> SettingsParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = SettingsParser(
        prog=prog, description=description, allow_abbrev=False, print_config="--print-%s"
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE|NAME",
        help=f"a recipe file, or the name of a shipped one, such as {example}",
    )
    parser.add_argument(
        "--out", type=str, default=None, metavar="FOLDER", help="run folder (runs/NAME)"
    )
    parser.add_argument(
        "--resume", type=str, default=None, metavar="FOLDER", help="run folder to continue exactly"
    )
    parser.add_argument(
        "--stop-after",
        type=int,
        default=None,
        metavar="N",
        help="save and leave after so many steps",
    )
    return parser


def parse_pretrain(arguments: Sequence[str]) -> tuple[PretrainConfig, dict[str, Any]]:
    """(configuration, {out, resume, init_from, stop_after}) of command-line arguments.

    With --resume the run's own configuration is the base, and settings given beside it change it.
    With --init-from the architecture is that of the weights, and a recipe's gives way. Faults end
    the process with status 2 and a message.
    """
    parser = pretrain_parser()
    try:
        recipes, rest = _recipes_and_rest(arguments)
        words = with_starting_architecture([*recipes, *rest])
    except (ValueError, OSError) as error:
        parser.error(str(error))
    given, config = _parse(parser, words, build_config)
    options = {key: given[key] for key in ("out", "resume", "init_from", "stop_after")}
    return config, options


def parse_finetune(arguments: Sequence[str]) -> tuple[FinetuneConfig, dict[str, Any]]:
    """(configuration, {out, resume, stop_after}) of command-line arguments.

    A first word that is no option names the weights. With --resume the run's own configuration is
    the base, and settings given beside it change it. Faults end the process with status 2 and a
    message.
    """
    parser = finetune_parser()
    words = list(arguments)
    try:
        if words and not words[0].startswith("-"):
            if option_value(words, "--weights") is not None:
                raise ValueError(f"weights are named twice, {words[0]} and by --weights: name one")
            words[:1] = ["--weights", words[0]]
        words = _with_architecture(words)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    given, config = _parse(parser, words, build_finetune_config)
    if given.from_scratch is not None and option_value(words, "--from-scratch") is None:
        parser.error("a recipe cannot hold from_scratch: type --from-scratch, or give it a model")
    return config, {key: given[key] for key in ("out", "resume", "stop_after")}


def _parse(
    parser: SettingsParser, words: Sequence[str], build: Callable[[Namespace], ConfigT]
) -> tuple[Namespace, ConfigT]:
    arguments = _with_recipe_files(list(words), parser)
    with warnings.catch_warnings():
        # Instantiation moved inside jsonargparse 4.5x; both spellings work in the pinned range.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"jsonargparse.*")
        try:
            given = parser.parse_args(arguments)
            if given.resume is not None:
                if given.out is not None:
                    raise ValueError("--resume continues in its own folder; leave --out out")
                load_config_values(given.resume)
                recorded = user_path(given.resume) / "config.yaml"
                given = parser.parse_args(["--config", str(recorded), *arguments])
            return given, build(given)
        except (ValueError, OSError) as error:
            parser.error(str(error))


def _recipes_and_rest(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(Every --config of a command line with its value, the other words).

    A parser takes words in their order. A recipe behind typed settings would take them back in
    silence, so recipes go first.
    """
    recipes: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--config":
            recipes += [word, *[value for value in [next(left, None)] if value is not None]]
        else:
            (recipes if word.startswith("--config=") else rest).append(word)
    return recipes, rest


def _with_architecture(words: list[str]) -> list[str]:
    """The arguments, recipes first, then the architecture that --from-scratch names.

    Weights that a recipe names give way then: nothing is to be taken from them.
    """
    recipes, rest = _recipes_and_rest(words)
    name = option_value(words, "--from-scratch")
    if name is None:
        return [*recipes, *rest]
    for option in ("--weights", "--resume"):
        if any(word.partition("=")[0] == option for word in words):
            raise ValueError(f"--from-scratch and {option} exclude each other")
    model, match = _network(name)
    baseline = [] if match is None else ["--vitmae", match]
    chosen = ["--model", json.dumps(model.to_dict()), *baseline]
    return [*recipes, "--weights", "null", *chosen, *rest]


def architecture(name: str) -> ModelConfig:
    """The architecture of a preset, run or weights folder, recipe file, shipped recipe or model.

    Raises FileNotFoundError for none of these and ValueError for a file without a model section.
    """
    return _network(name)[0]


def _network(name: str) -> tuple[ModelConfig, str | None]:
    """The architecture that a name stands for, and how a ViT-MAE is matched to it, if it is one.

    Raises as `architecture`.
    """
    if name in PRESETS:
        return PRESETS[name], None
    path = user_path(name)
    if name in SHIPPED or (path / CONFIG).is_file():
        folder, described = find_weights(name)
        if kind_of(described) == ViTMAE.kind:  # transformers' own format
            return architecture_in(folder, described), "configuration"
        if not isinstance(described.get("config"), dict):
            raise ValueError(f"{name} says no architecture of ours: name a run, or a preset")
        kind = str(described.get("model_type", ""))
        match = str(described.get("match", "configuration"))  # classifiers hold the sizes of ours
        return (
            ModelConfig.from_dict(described["config"]),
            match if kind.startswith("vit_mae") else None,
        )
    if path.is_dir():
        values = load_config_values(path)
    else:
        try:
            file = path if path.is_file() else recipe(name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; presets: {', '.join(PRESETS)}") from None
        values = load_settings(file)
    if not isinstance(values.get("model"), dict):
        raise ValueError(f"{name} holds no model section: name a preset, {', '.join(PRESETS)}")
    return ModelConfig.from_dict(values["model"]), values.get("vitmae")


def _with_recipe_files(arguments: list[str], parser: SettingsParser) -> list[str]:
    """The arguments, with `--config NAME` of a shipped recipe turned into its file."""
    resolved = list(arguments)
    for index, word in enumerate(arguments):
        key, joined, value = word.partition("=")
        if key != "--config":
            continue
        if not joined:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        if not value:
            continue
        try:
            file = user_path(value)
            if file.is_file():
                load_settings(file)  # what is wrong with it is said of the file, by name
            path = str(file if file.exists() else recipe(value))
        except (ValueError, OSError) as error:
            parser.error(str(error))
        if joined:
            resolved[index] = f"--config={path}"
        else:
            resolved[index + 1] = path
    return resolved


def build_config(given: Namespace) -> PretrainConfig:
    """The configuration of a parsed namespace; ValueError when its values do not fit together."""
    data, simdino = _values(given, "data"), _values(given, "simdino")
    return _built(
        PretrainConfig,
        given,
        model=ModelConfig.from_dict(_values(given, "model")),
        simdino=SimDINOConfig(**{**simdino, "crops": Crops(**simdino["crops"])}),
        data=DataConfig(**{**data, "augment": Augment(**data["augment"])}),
        masking=Masking(**_values(given, "masking")),
        objective=ObjectiveConfig(**_values(given, "objective")),
        optim=OptimConfig(**_values(given, "optim")),
        trainer=TrainerConfig(**_values(given, "trainer")),
        record=RecordConfig(**_values(given, "record")),
    )


def build_finetune_config(given: Namespace) -> FinetuneConfig:
    """The configuration of a parsed namespace; ValueError when its values do not fit together."""
    data = _values(given, "data")
    return _built(
        FinetuneConfig,
        given,
        model=None if given.model is None else ModelConfig.from_dict(_values(given, "model")),
        segment=SegmentConfig(**_values(given, "segment")),
        data=LabelledDataConfig(**{**data, "augment": SupervisedAugment(**data["augment"])}),
        optim=FinetuneOptimConfig(**_values(given, "optim")),
        trainer=TrainerConfig(**_values(given, "trainer")),
        record=CheckpointConfig(**_values(given, "record")),
    )


def _built(kind: Callable[..., ConfigT], given: Namespace, **sections: Any) -> ConfigT:
    """A configuration: every field that is no section as it was parsed, so that none is lost."""
    names = [field.name for field in fields(cast("Any", kind)) if field.name not in sections]
    return kind(**sections, **{name: given[name] for name in names})


def _values(given: Namespace, section: str) -> dict[str, Any]:
    part = given[section]
    return part.as_dict() if isinstance(part, Namespace) else dict(part)
