"""What `export.json` says of an exported model: read within bounds, compared with the files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crate_mae.common.escaping import printable
from crate_mae.common.files import file_hash, read_json_object, user_path

FACTS = "export.json"
MAX_FACTS_BYTES = 16 << 20
"""A hundred thousand names of classes may stand in it."""
MAX_FILES = 8
_SHOWN = 60
_ANEW = "export the model again with crate-mae export, into a new folder"


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What an exported model is of."""

    format: str
    what: str
    """encode, classify or reconstruct."""
    int8: bool
    inputs: Mapping[str, Any]
    """Shape and type by name, in the order in which they are given."""
    preprocess: Mapping[str, Any]
    weights_sha256: str
    """Of the tensor file that it was made of."""
    files: Mapping[str, str]
    """The SHA-256 of each file of the model."""


def file_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder by its name; `export.json` is left out."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != FACTS)
    return {path.name: file_hash(path) for path in files}


def read_facts(folder: str | Path) -> ExportFacts:
    """What the `export.json` of a folder says; the files are still to be compared with it.

    Raises FileNotFoundError where there is none, and ValueError for one that `export_model` has not
    written.
    """
    path = user_path(folder) / FACTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no exported model: there is no {FACTS}; name the folder that crate-mae"
            " export wrote"
        )
    values = read_json_object(path, max_bytes=MAX_FACTS_BYTES)
    if "files" not in values and "format" in values:
        raise ValueError(
            f"{path} does not say which files the model is in, so that a change of them could not"
            f" be seen: {_ANEW}"
        )
    for name, kind in _KINDS.items():
        if not isinstance(values.get(name), kind):
            raise ValueError(
                f"{path} is not as crate-mae export writes it, as its {name} cannot be"
                f" {shown(values.get(name))}: {_ANEW}"
            )
    files = values["files"]
    sound = all(isinstance(digest, str) and _is_plain(name) for name, digest in files.items())
    if not sound or not 0 < len(files) <= MAX_FILES:
        raise ValueError(f"{path} names files that are none of a model, {shown(files)}: {_ANEW}")
    return ExportFacts(**{name: values[name] for name in _KINDS})


def check_files(folder: str | Path, facts: ExportFacts) -> None:
    """Raise ValueError unless the files of a folder are those that its `export.json` is of.

    Raises FileNotFoundError for one that is missing.
    """
    for name, digest in facts.files.items():
        path = user_path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}, which {FACTS} names, is missing: {_ANEW}")
        if (found := file_hash(path)) != digest:
            raise ValueError(
                f"{path} is not the file that {FACTS} beside it is of: its SHA-256 is {found[:12]},"
                f" not {printable(digest[:12])}; put the right one there, or {_ANEW}"
            )


def shown(value: Any) -> str:
    """A value of a file in a message: short, and nothing in it that steers a terminal."""
    text = repr(value)
    return printable(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder itself."""
    return Path(name).name == name and len(name) <= 255 and name.isprintable()


_KINDS = {
    "format": str,
    "what": str,
    "int8": bool,
    "inputs": dict,
    "preprocess": dict,
    "weights_sha256": str,
    "files": dict,
}
"""What the values of `export.json` are, as far as they are looked at."""
