"""What the verbs share: the parser, options that several have, and where their output goes.

An option has one spelling and one meaning in all verbs. Nothing heavy is imported.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from crate_mae.common.escaping import printable
from crate_mae.common.files import check_folder_of, user_path, write_atomically
from crate_mae.common.hints import option_names, refuse_arguments
from crate_mae.common.progress import Progress, progress_bar

if TYPE_CHECKING:
    from crate_mae.sources.base import ImageSource
    from crate_mae.sources.found import Reading

WEIGHTS = "weights folder, run folder, shipped model (crate-mae weights) or Hub repository"
STANDARD_OUTPUT = "-"
POOLS = ("cls", "mean", "both", "mean-std", "layers")
"""What the tokens of an image can become, in every verb that takes features."""

T = TypeVar("T")


class CommandParser(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are a line and, of options, the nearest name."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of the arguments; faults end the process with status 2 and a message."""
        self.refuse_unknown(argv)
        return self.parse_args(argv)

    def refuse_unknown(self, argv: Sequence[str], more: Collection[str] = ()) -> None:
        """End the process with status 2 when an option is neither of this parser nor of `more`.

        That is told before what else is wrong: an option that is required and missing is often
        the one that was misspelt.
        """
        known = [*option_names(self), *more]
        for word in argv:
            if word == "--":
                return
            option = word.partition("=")[0]
            if re.fullmatch(r"--\S+", option) and option not in known:
                refuse_arguments(self.prog, f"there is no option {option}", known)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        refuse_arguments(self.prog, message, option_names(self))


def refuse_beside(parser: CommandParser, reason: str, options: Mapping[str, object]) -> None:
    """End the process with status 2 when one of the options was given, for a reason.

    The values are those of the command line: None, and False of a switch, say that an option was
    not given. The reason names what excludes them.
    """
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        *most, last = given
        named = f"{', '.join(most)} and {last}" if most else last
        parser.error(f"{reason}: leave {named} out")


def verb_parser(verb: str, summary: str) -> CommandParser:
    """A parser of one verb."""
    return CommandParser(f"crate-mae {verb}", summary)


def add_weights(parser: CommandParser, more: str = "") -> None:
    """Add the weights, first of the arguments."""
    parser.add_argument("weights", help=WEIGHTS + more)


def add_images(
    parser: CommandParser, *, limit: int | None = None, address_only: bool = False
) -> None:
    """Add the images, as one address or as files and folders, --split and --limit."""
    if address_only:
        parser.add_argument(
            "images",
            nargs=1,
            metavar="address",
            help="data address, such as imagefolder:PATH, parquet:PATH or digits",
        )
    else:
        parser.add_argument(
            "images", nargs="+", help="one data address, or image files and folders"
        )
    add_part(parser, limit)
    add_reading(parser)


def add_reading(parser: CommandParser) -> None:
    """Add --image-key, --label-key and --follow-links: how a source is read."""
    parser.add_argument(
        "--image-key", metavar="NAME", help="column, array or member of the images (usual names)"
    )
    parser.add_argument(
        "--label-key",
        metavar="NAME",
        help="column, array or member of the labels, or none (usual names)",
    )
    parser.add_argument("--follow-links", action="store_true", help="enter links to folders")


def reading_of(given: argparse.Namespace) -> "Reading":
    """How sources are read, as `add_reading` asked."""
    from crate_mae.sources.found import Reading

    return Reading(
        image_key=given.image_key, label_key=given.label_key, follow_links=given.follow_links
    )


def add_part(parser: CommandParser, limit: int | None) -> None:
    """Add --split and --limit: which of the images are used."""
    parser.add_argument("--split", metavar="NAME", help="split of the data address")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        default=limit,
        help=f"use at most this many images ({'all' if limit is None else limit})",
    )


def opened_images(given: argparse.Namespace, *, varied: bool = False) -> "ImageSource":
    """The source of the images that `add_images` read; raises what `open_images` raises."""
    from crate_mae.sources.inputs import open_images

    return open_images(
        given.images,
        split=given.split,
        limit=given.limit,
        reading=reading_of(given),
        varied=varied,
    )


def add_after(parser: CommandParser, *, several: bool = False) -> None:
    """Add --after: how many encoder layers the tokens have passed."""
    parser.add_argument(
        "--after",
        type=PassedLayers(several=several),
        metavar="N,N" if several else "N",
        help="take tokens after so many encoder layers, from 0 (what enters the first); final:"
        f" after all of them and the final norm{'; all: everything' if several else ''} (final)",
    )


def add_layers(parser: CommandParser, what: str, *, several: bool = False) -> None:
    """Add --layers: layers themselves, of which `what` tells the use and the default."""
    _add_numbers(parser, "--layers", f"{what}, from 0, negative from the last", several)


def add_heads(parser: CommandParser, what: str, *, several: bool = False) -> None:
    """Add --heads: heads of attention, of which `what` tells the use and the default."""
    _add_numbers(parser, "--heads", f"{what}, from 0", several)


def _add_numbers(parser: CommandParser, option: str, what: str, several: bool) -> None:
    parser.add_argument(
        option,
        type=Numbered(several=several),
        metavar="N,N" if several else "N",
        help=f"{what}, or all (all)" if several else what,
    )


def add_pool(parser: CommandParser, known: Sequence[str] = POOLS, *, several: bool = False) -> None:
    """Add --pool: how the tokens of an image become its features."""
    parser.add_argument(
        "--pool",
        type=Names(tuple(known), several=several),
        metavar="NAME,NAME" if several else "NAME",
        help=f"{'some' if several else 'one'} of {', '.join(known)} (mean)",
    )


def add_seed(parser: CommandParser, of: str) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=seed_number, metavar="N", default=0, help=f"{of} (0)")


def add_batch_size(parser: CommandParser, default: int) -> None:
    """Add --batch-size: images that go through the model together."""
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        default=default,
        help=f"images at a time ({default})",
    )


def add_device(parser: CommandParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps (auto)"
    )


def add_json(parser: CommandParser, what: str) -> None:
    """Add --json: numbers into a new file, or to standard output in place of the text."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        help=f"also write {what} as JSON into a new file; -: to standard output, without the text",
    )


def add_overwrite(parser: CommandParser, what: str = "an existing file") -> None:
    """Add --overwrite."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def add_folder_target(parser: CommandParser) -> None:
    """Add --out, a folder that does not exist yet or is empty."""
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new or empty folder")


def add_picture_target(parser: CommandParser, *, several: bool = False) -> None:
    """Add --out, a picture, and --overwrite."""
    more = "; several images: FILE-1, FILE-2, ..." if several else ""
    parser.add_argument("--out", required=True, metavar="FILE", help=f".png, .pdf or .svg{more}")
    add_overwrite(parser)


def add_image_size(parser: CommandParser) -> None:
    """Add --image-size."""
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="N|HxW",
        help="height and width of the images the model gets (its own)",
    )


def add_dense_options(parser: CommandParser) -> None:
    """Add --image-size and --stride, the two ways to more tokens."""
    add_image_size(parser)
    parser.add_argument(
        "--stride", type=int, metavar="N", help="cut a patch every N pixels (the patch size)"
    )


def add_mass(parser: CommandParser, what: str) -> None:
    """Add --mass: a share of the attention, of which `what` tells the use and the default."""
    parser.add_argument("--mass", type=float, metavar="SHARE", help=what)


@dataclass(frozen=True)
class PassedLayers:
    """Reads "0,2,final", or one of these: encoder layers passed, None for the final features."""

    several: bool

    def __call__(self, text: str) -> tuple[int | None, ...] | Literal["all"]:
        """The numbers, a single one in a tuple, too; an argparse error for other words."""
        if text == "all" and self.several:
            return "all"
        parts = text.split(",")
        if not all(part == "final" or _is_count(part) for part in parts):
            more = " or all" if self.several else ""
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a number of layers passed, such as 2, nor final{more}"
            )
        _check_one(text, parts, self.several)
        return tuple(None if part == "final" else int(part) for part in parts)


@dataclass(frozen=True)
class Numbered:
    """Reads "0,-1" or "all", or one number: layers or heads themselves."""

    several: bool

    def __call__(self, text: str) -> tuple[int, ...] | None:
        """The numbers, a single one in a tuple, too; None for all; an argparse error else."""
        if text == "all" and self.several:
            return None
        parts = text.split(",")
        if not all(_is_count(part.removeprefix("-")) for part in parts):
            more = ", nor all" if self.several else ""
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number, such as 0 or -1{more}")
        _check_one(text, parts, self.several)
        return tuple(map(int, parts))


@dataclass(frozen=True)
class Names:
    """Reads "cls,mean", or one of these: some of the known names, each once."""

    known: tuple[str, ...]
    several: bool

    def __call__(self, text: str) -> tuple[str, ...]:
        """The names, a single one in a tuple, too; an argparse error for other names."""
        parts = list(dict.fromkeys(text.split(",")))
        if unknown := [part for part in parts if part not in self.known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(self.known)}")
        _check_one(text, parts, self.several)
        return tuple(parts)


def _check_one(text: str, parts: Sequence[str], several: bool) -> None:
    if len(parts) > 1 and not several:
        raise argparse.ArgumentTypeError(f"{text!r} is more than one: name one")


def _is_count(text: str) -> bool:
    return text.isdecimal() and text.isascii() and len(text) < 10


def single(values: tuple[T, ...] | None, default: T) -> T:
    """The one value of an option that takes one, or the default where it was not given."""
    return default if values is None else values[0]


def whole_numbers(text: str) -> tuple[int, ...]:
    """The numbers of "1,5,10"; an argparse error for other words."""
    parts = text.split(",")
    if not all(_is_count(part.removeprefix("-")) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers such as 1,5,10")
    return tuple(map(int, parts))


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of "0.1,1e-3"; an argparse error for other words."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers such as 0.1,1e-3") from None


def image_size(text: str) -> tuple[int, int]:
    """The height and width of "N" or "HxW"; an argparse error for other words."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= 1 << 16 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HxW in pixels")
    return int(parts[0]), int(parts[-1])


def time_span(text: str) -> float:
    """The seconds of "90s", "10m", "1h30m" or "2d"; an argparse error for other words."""
    units = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    match = re.fullmatch("".join(rf"(?:(\d{{1,6}}){unit})?" for unit in units), text, re.ASCII)
    parts = match.groups(default="0") if match else ("0",) * len(units)
    total = sum(int(n) * size for n, size in zip(parts, units.values(), strict=True))
    if not total:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 10m, 1h, 1h30m or 8h")
    return float(total)


def seed_number(text: str) -> int:
    """The seed that a text gives; an argparse error unless it is from 0 to 2^31 - 1."""
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: use one from 0 to {(1 << 31) - 1}")
    return int(text)


def report_unreadable(unreadable: Sequence[tuple[str, str]]) -> None:
    """Tell of the images that were passed over, on the error stream."""
    for name, reason in unreadable:
        print(f"passed over: {printable(name)} ({printable(reason)})", file=sys.stderr)


def terminal_width() -> int | None:
    """The columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


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


def counter_for(what: str) -> Progress:
    """A bar with the time left on a terminal; a line now and then elsewhere."""
    return progress_bar(what)


def new_file(name: str | None) -> Path | None:
    """The path of a new file, or None for None; raises when it is there or has no folder."""
    if name is None:
        return None
    path = user_path(name)
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; name another file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} in")
    check_folder_of(path)
    return path


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write values as JSON and say so."""
    write_atomically(path, json.dumps(values, indent=2) + "\n")
    print(f"wrote {path}")


def data_facts(source: "ImageSource", given: Sequence[str]) -> dict[str, Any]:
    """Which images numbers are of, as plain values; reads names and sizes of all of them.

    `given` are the words that named them: files and folders have no address of their own.
    """
    return {
        "address": source.address,
        "given": list(given),
        "split": source.split,
        "count": len(source),
        "fingerprint": source.fingerprint(),
    }


class Output:
    """A verb's text, and its numbers as JSON: both, or the numbers alone to standard output.

    Made before any work: raises for a JSON file that is there already or has no folder.
    """

    def __init__(self, json_file: str | None) -> None:
        self.wants_json = json_file is not None
        """Whether `write` does anything."""
        self._quiet = json_file == STANDARD_OUTPUT
        self.path = None if self._quiet else new_file(json_file)
        """The new file, where it is one."""

    def say(self, text: str) -> None:
        """Print text, unless standard output is for the numbers alone."""
        if not self._quiet:
            print(text)

    def write(self, values: dict[str, Any]) -> None:
        """Write values as JSON where that was asked for, and say so."""
        if self._quiet:
            print(json.dumps(values, indent=2))
        elif self.path is not None:
            write_json(self.path, values)

    def keep(self, values: dict[str, Any]) -> None:
        """Write what is known so far into the new file, where it is one."""
        if self.path is not None:
            write_atomically(self.path, json.dumps(values, indent=2) + "\n")
