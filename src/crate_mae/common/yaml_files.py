"""YAML of bounded size, depth and growth: files of settings and cards that others may have written.

An alias costs a few bytes and stands for all that its anchor holds, so that aliases of aliases in a
file below 1 KiB can mean more values than any machine holds. The tree is measured as it would be
written out, before anything is made of it.
"""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_VALUES = 200_000
"""Values of a file, those that aliases repeat counted each time."""
MAX_DEPTH = 60


def load_yaml(text: str, *, origin: str) -> Any:
    """What YAML text holds: plain values alone. `origin` names it in messages.

    Raises ValueError for what is no YAML, nests deeper than MAX_DEPTH, refers to itself, or means
    more than MAX_VALUES values.
    """
    check_yaml(text, origin=origin)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{origin} is damaged, no YAML: {_in_one_line(error)}") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises as `load_yaml`, and ValueError for a file above MAX_BYTES."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes: no settings are so long")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    return load_yaml(text, origin=str(path))


def check_yaml(text: str, *, origin: str) -> None:
    """Raise ValueError as `load_yaml` does, without making anything of the text."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"{origin} is longer than {MAX_BYTES} characters: no settings are so long")
    try:
        _check_depth(text, origin)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{origin} is damaged, no YAML: {_in_one_line(error)}") from error
    if root is not None:
        _size(root, {}, origin)


def _check_depth(text: str, origin: str) -> None:
    """Raise ValueError for deep nesting, from the events alone: what composes them recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = 0 if event.start_mark is None else event.start_mark.line
                raise ValueError(
                    f"{origin} nests deeper than {MAX_DEPTH} levels, in line {line + 1}: no"
                    " settings do"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _size(node: yaml.Node, known: dict[int, int | None], origin: str) -> int:
    """How many values a node stands for, written out; each is visited once."""
    key = id(node)
    if key in known:
        size = known[key]
        if size is None:
            raise ValueError(f"{origin} holds an alias of what it is part of: write it out")
        return size
    known[key] = None
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_size(child, known, origin) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            total += sum(_size(child, known, origin) for child in pair)
    if total > MAX_VALUES:
        raise ValueError(
            f"{origin} means more than {MAX_VALUES:,} values, most of them by aliases that repeat"
            " others: write out what is meant"
        )
    known[key] = total
    return total


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
