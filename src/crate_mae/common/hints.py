"""The nearest known word for one that is not known, and what is said of wrong arguments."""

import argparse
import difflib
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "--data-split": ("--split", "--data.split"),
    "--layer": ("--after", "--layers"),
    "--layers": ("--after",),
    "--no-compare": ("--no-baselines",),
    "--output": ("--out",),
    "--resolution": ("--image-size", "--image_size", "--model.image_size"),
    "--size": ("--image-size", "--image_size", "--model.image_size"),
    "--to-folder": ("--out",),
}
"""What else an option may be called, where its own name is not near enough to be guessed."""


def did_you_mean(word: str, known: Any) -> str:
    """A hint with the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def option_hint(options: Iterable[str], known: Collection[str]) -> str:
    """A hint for the first of some options that is not known; empty where all are, or none is near.

    `--limit=5` counts as `--limit`.
    """
    for option in options:
        name = option.partition("=")[0].rstrip(".,:;")
        if not name.startswith("--") or name in known:
            continue
        meant = [other for other in OTHER_NAMES.get(name, ()) if other in known]
        return f" (did you mean {meant[0]!r}?)" if meant else did_you_mean(name, known)
    return ""


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Every option of a parser, such as "--out"."""
    return [name for action in parser._actions for name in action.option_strings]


def option_value(words: Sequence[str], option: str) -> str | None:
    """The last value of an option among the words of a command line; None without it."""
    found = None
    for index, word in enumerate(words):
        key, joined, value = word.partition("=")
        if key == option:
            found = value if joined else "".join(words[index + 1 : index + 2])
    return found


def refuse_arguments(prog: str, message: str, known: Collection[str]) -> NoReturn:
    """End the process with status 2 and two lines, with a hint for an unknown option named."""
    print(f"error: {message}{option_hint(message.split(), known)}", file=sys.stderr)
    print(f"       {prog} --help lists every option", file=sys.stderr)
    raise SystemExit(2)
