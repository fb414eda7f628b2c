"""What the verbs share: parsers, options, targets. Nothing heavy is imported."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from crate_mae.common.files import check_folder_of, write_atomically
from crate_mae.common.progress import Progress, progress_bar

WEIGHTS = "weights folder, run folder, shipped model (crate-mae weights) or Hub repository"


def verb_parser(verb: str, summary: str) -> argparse.ArgumentParser:
    """A parser of one verb."""
    return argparse.ArgumentParser(prog=f"crate-mae {verb}", description=summary)


def add_data_options(parser: argparse.ArgumentParser, limit: int | None = None) -> None:
    """Add --data-split and --limit."""
    default = "all" if limit is None else limit
    parser.add_argument("--data-split", help="split of the data address")
    parser.add_argument(
        "--limit", type=int, default=limit, help=f"use at most this many images ({default})"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def add_picture_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add --out and --overwrite."""
    more = "; several images: FILE-1, FILE-2, ..." if several else ""
    parser.add_argument("--out", required=True, metavar="FILE", help=f".png, .pdf or .svg{more}")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def add_dense_options(parser: argparse.ArgumentParser) -> None:
    """Add --size and --stride, the two ways to more tokens."""
    parser.add_argument(
        "--size",
        type=image_size,
        metavar="N|HxW",
        help="height and width of the images the model gets (its own)",
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="cut a patch every N pixels (the patch size)"
    )


def image_size(text: str) -> tuple[int, int]:
    """The height and width of "N" or "HxW"; an argparse error for other words."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= 1 << 16 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HxW in pixels")
    return int(parts[0]), int(parts[-1])


def whole_numbers(text: str) -> list[int] | None:
    """The numbers of "0,-1", None for "all"; an argparse error for other words."""
    if text == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither all nor whole numbers such as 0,-1"
        ) from None


def seed_number(text: str) -> int:
    """The seed that a text gives; an argparse error unless it is from 0 to 2^31 - 1."""
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: use one from 0 to {(1 << 31) - 1}")
    return int(text)


def report_unreadable(unreadable: list[tuple[str, str]]) -> None:
    """Tell of the images that were passed over, on the error stream."""
    for name, reason in unreadable:
        print(f"passed over: {name} ({reason})", file=sys.stderr)


def device_of(name: str) -> str:
    """The device that a name means; "auto" is a CUDA GPU where there is one.

    Raises ValueError for a device that this machine does not have.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {name!r} cannot be used here ({reason}): use auto or cpu"
        ) from error
    return name


def counter_for(what: str) -> Progress | None:
    """A bar with the time left on a terminal; None elsewhere."""
    return progress_bar(what)


def new_file(name: str | None) -> Path | None:
    """The path of a new file, or None for None; raises when it is there or has no folder."""
    if name is None:
        return None
    path = Path(name)
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; name another file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    check_folder_of(path)
    return path


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write values as JSON and say so; do nothing without a path."""
    if path is not None:
        write_atomically(path, json.dumps(values, indent=2) + "\n")
        print(f"wrote {path}")


def print_json(values: dict[str, Any]) -> None:
    """Print values as JSON."""
    print(json.dumps(values, indent=2))
