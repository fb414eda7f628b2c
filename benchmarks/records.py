"""What scripts that write a record have in common: its head, and how their command begins."""

import argparse
from datetime import date
from pathlib import Path
from typing import Any

from crate_mae.common.environment import environment


def day_and_machine() -> dict[str, Any]:
    """The day and the machine, JSON-able: what every record begins with."""
    machine = environment()
    return {
        "date": date.today().isoformat(),
        "machine": {key: machine[key] for key in ("processor", "cores", "python", "torch")},
    }


def named_path(word: str, form: str) -> tuple[str, Path]:
    """Name and path of a word NAME=PATH; ValueError, saying the `form`, for other words."""
    name, equals, path = word.partition("=")
    if not (name and equals and path):
        raise ValueError(f"name {form}, not {word!r}")
    return name, Path(path)


def parser_of(docstring: str | None) -> argparse.ArgumentParser:
    """A parser that is described by the first line of a script's docstring."""
    return argparse.ArgumentParser(
        description=docstring.splitlines()[0] if docstring else "", allow_abbrev=False
    )
