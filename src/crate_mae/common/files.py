"""Files: whole or not at all when written, small and known by hash when read."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 20
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
"""What figures are written as."""


def check_folder_of(path: Path) -> None:
    """Raise NotADirectoryError or PermissionError when no file can be made at `path`.

    Its folder may still be missing: then the nearest one that is there counts.
    """
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, so {path} cannot be written below it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to: name another place than {path}")


def check_new_folder(folder: str | Path) -> Path:
    """The whole path, links followed, of a folder that is new or empty.

    Raises FileExistsError for anything else, and what `check_folder_of` raises for a place where
    nothing can be written.
    """
    path = Path(folder).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{folder} exists and is not overwritten; name a new folder")
    check_folder_of(path / "file")
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; flushed to disk and moved there in one step at the end.

    When the block raises, the old file stays as it was and the new one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield fresh
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The named values of a small JSON file that others may have written.

    Raises ValueError for a file above `max_bytes` (1 MiB), for what is no JSON and for anything but
    an object.
    """
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes: no such file of ours")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def file_hash(path: Path) -> str:
    """The SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file_target(
    path: str | Path, suffixes: tuple[str, ...], *, what: str, overwrite: bool
) -> Path:
    """The path, once its suffix is one of `suffixes`, no file would be lost and one can be made."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: {what} are written as {', '.join(suffixes)}; change the suffix")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; name another file or ask for it to be overwritten")
    check_folder_of(path)
    return path
