"""YAML recipes and `--key.sub value` into a checked configuration."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

import crate_mae
from crate_mae.data.batches import Masking
from crate_mae.data.module import DataConfig
from crate_mae.data.transforms import Augment
from crate_mae.models.config import ModelConfig, did_you_mean
from crate_mae.training.config import OptimConfig, PretrainConfig, RecordConfig, TrainerConfig
from crate_mae.training.folder import load_config_values


class SettingsParser(ArgumentParser):
    """A parser whose errors are one line: what is wrong, and the nearest known name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Nothing; ends the process with status 2."""
        known = [option for action in self._actions for option in action.option_strings]
        hints = [did_you_mean(word, known) for word in message.split() if word.startswith("--")]
        print(f"error: {message}{''.join(hints[:1])}", file=sys.stderr)
        print(f"       {self.prog} --help lists every setting", file=sys.stderr)
        raise SystemExit(2)


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


def pretrain_parser() -> SettingsParser:
    """A parser of every setting of PretrainConfig, with the recipe file as --config."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = SettingsParser(
        prog="crate-mae pretrain",
        description="Masked pre-training: from images to weights, reconstructions and metrics.",
    )
    parser.add_argument(
        "--config",
        action="config",
        help="a recipe file, or the name of a shipped one, such as digits",
    )
    parser.add_argument("--out", type=str, default=None, help="run folder; default runs/NAME")
    parser.add_argument("--resume", type=str, default=None, help="run folder to continue exactly")
    parser.add_argument(
        "--init-from", type=str, default=None, help="weights that a new run starts from"
    )
    parser.add_argument(
        "--stop-after", type=int, default=None, help="save and leave after so many steps"
    )
    parser.add_class_arguments(PretrainConfig, None)
    return parser


def parse_pretrain(arguments: Sequence[str]) -> tuple[PretrainConfig, dict[str, Any]]:
    """(configuration, {out, resume, init_from, stop_after}) of command-line arguments.

    With --resume the run's own configuration is the base, and settings given beside it change it.
    Faults end the process with status 2 and a message.
    """
    parser = pretrain_parser()
    arguments = _with_recipe_files(list(arguments))
    with warnings.catch_warnings():
        # Instantiation moved inside jsonargparse 4.5x; both spellings work in the pinned range.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"jsonargparse.*")
        try:
            given = parser.parse_args(arguments)
            if given.resume is not None:
                if given.out is not None:
                    raise ValueError("--resume continues in its own folder; leave --out out")
                load_config_values(given.resume)
                recorded = Path(given.resume) / "config.yaml"
                given = parser.parse_args(["--config", str(recorded), *arguments])
            config = build_config(given)
        except (ValueError, OSError) as error:
            parser.error(str(error))
    options = {key: given[key] for key in ("out", "resume", "init_from", "stop_after")}
    return config, options


def _with_recipe_files(arguments: list[str]) -> list[str]:
    """The arguments, with `--config NAME` of a shipped recipe turned into its file."""
    resolved = list(arguments)
    for index, word in enumerate(arguments):
        key, joined, value = word.partition("=")
        if key != "--config":
            continue
        if not joined:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        if not value or Path(value).exists():
            continue
        try:
            path = str(recipe(value))
        except FileNotFoundError as error:
            pretrain_parser().error(str(error))
        if joined:
            resolved[index] = f"--config={path}"
        else:
            resolved[index + 1] = path
    return resolved


def build_config(given: Namespace) -> PretrainConfig:
    """The configuration of a parsed namespace; ValueError when its values do not fit together."""

    def values(section: str) -> dict[str, Any]:
        part = given[section]
        return part.as_dict() if isinstance(part, Namespace) else dict(part)

    data = values("data")
    return PretrainConfig(
        name=given.name,
        seed=given.seed,
        model=ModelConfig.from_dict(values("model")),
        data=DataConfig(**{**data, "augment": Augment(**data["augment"])}),
        masking=Masking(**values("masking")),
        optim=OptimConfig(**values("optim")),
        trainer=TrainerConfig(**values("trainer")),
        record=RecordConfig(**values("record")),
    )
