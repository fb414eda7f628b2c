"""What can be told from the words alone, before anything heavy is imported.

torch and its friends take seconds to import, on a busy machine most of a minute: too long to hear
that a file exists. Everything here is checked again by the library, which knows more.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from crate_mae.common.files import (
    FIGURE_SUFFIXES,
    PATH_SCHEMES,
    check_file_target,
    check_new_folder,
    user_path,
)
from crate_mae.common.folder_lock import is_unborn, unborn_hint
from crate_mae.common.hints import option_value, refuse_arguments
from crate_mae.models.mask_classes import COLUMN
from crate_mae.weights.shipped import check_weights_name

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Variables that number the processes of a run; only the first of them finds no folder yet."""
FEATURE_FILES = (".safetensors", ".npz", ".parquet")
PARTS = "_manifest.json"
"""What a folder of parts of features holds."""


def check_run_words(verb: str, words: Sequence[str]) -> None:
    """Raise FileExistsError for a run folder that is taken, and what the other words allow to say.

    FileNotFoundError for data or weights that are nowhere; a --resume of what is no run ends the
    process with status 2.
    """
    out, resume = option_value(words, "--out"), option_value(words, "--resume")
    if out and resume:
        refuse_arguments(
            f"crate-mae {verb}", "--resume continues in its own folder; leave --out out", ()
        )
    if resume and not (user_path(resume) / "config.yaml").is_file():
        told = f"{resume} is no run folder: it has no config.yaml{unborn_hint(user_path(resume))}"
        refuse_arguments(f"crate-mae {verb}", told, ())
    if out and not resume:
        check_run_folder(out)
    for option in ("--data.source", "--data.val_source", "--data.test_source"):
        address = option_value(words, option)
        if address:
            check_address(address)
    for option in ("--segment.masks", "--segment.val_masks", "--segment.test_masks"):
        masks = option_value(words, option)
        check_masks(None if masks == "null" else masks)
    given = [option_value(words, option) for option in ("--init-from", "--weights")]
    if verb == "finetune" and words and not words[0].startswith("-"):
        given.append(words[0])
    for name in given if not resume else ():
        if name and name != "null":
            check_weights_name(name)


def check_run_folder(out: str) -> None:
    """Raise FileExistsError for a folder that is taken, as the main process finds it.

    One that a run left which was killed before its settings is not.
    """
    folder = user_path(out)
    first = all(os.environ.get(name, "0") == "0" for name in RANKS)
    if first and folder.exists() and not is_unborn(folder):
        raise FileExistsError(
            f"{folder} exists and is never overwritten; continue it with --resume {folder}, or"
            " name another folder with --out"
        )


def check_words(given: argparse.Namespace, *, picture: bool = False, folder: bool = False) -> None:
    """Raise what can be said of the targets, weights and images of a verb's arguments.

    `picture` and `folder` tell what --out is. Raises FileExistsError, FileNotFoundError, ValueError
    for another suffix, and what `check_folder_of` raises.
    """
    overwrite = getattr(given, "overwrite", False)
    if picture and given.out is not None:
        check_file_target(given.out, FIGURE_SUFFIXES, what="figures", overwrite=overwrite)
    if folder and not overwrite:
        check_new_folder(given.out)
    weights = getattr(given, "weights", None)
    if weights is not None and not is_feature_file(weights):
        check_weights_name(weights)
    check_masks(getattr(given, "masks", None))
    for name in ("images", "address", "data"):
        named = getattr(given, name, None) or ()
        for one in [named] if isinstance(named, str) else named:
            check_address(one)


def is_feature_file(name: str, *, folder: bool = False) -> bool:
    """Whether a name is that of features: a file or, with `folder` alone, a folder of parts."""
    if (user_path(name) / PARTS).is_file():
        return True
    return not folder and Path(name).suffix.lower() in FEATURE_FILES


def check_masks(masks: str | None) -> None:
    """Raise FileNotFoundError for a folder of masks that is not there."""
    if masks and not masks.startswith(COLUMN) and not user_path(masks).is_dir():
        raise FileNotFoundError(f"there is no folder {masks} with masks")


def check_address(address: str) -> None:
    """Raise FileNotFoundError for an address of a path where there is nothing."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme in PATH_SCHEMES and rest:
        path = user_path(rest)
        if not path.exists():
            raise FileNotFoundError(f"{address}: there is no file or folder {path}")
