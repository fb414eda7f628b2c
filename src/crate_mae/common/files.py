"""Files: whole or not at all when written, small and known by hash when read."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crate_mae.common.litter import OLD, beside, sweep

MAX_JSON_BYTES = 1 << 20
PATH_SCHEMES = ("imagefolder", "parquet", "npy", "csv", "tiff")
"""Schemes of data addresses that are followed by a path."""
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
"""What figures are written as."""

REMEDIES = {
    errno.ENOSPC: "the disk is full: free space there, or name another place",
    errno.EDQUOT: "your quota there is used up: free space, or name another place",
    errno.EFBIG: "files there may not become so large: name another place",
    errno.EROFS: "nothing can be written there: name another place",
    errno.EACCES: "you may not write there: name another place",
    errno.EPERM: "you may not write there: name another place",
    errno.EIO: "the device fails: name another place, and look after that disk",
    errno.ENAMETOOLONG: "the name is too long: name a shorter one",
}
"""What to do about errors of writing, by number."""

FULL_DISK = {
    number: REMEDIES[number] for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
}
"""Those that only writing meets."""

# safetensors, PyTorch's writer in C++, and the streams below it.
_FULL = (
    "no space left",
    "os error 28",
    "pytorchstreamwriter",
    "inline_container",
    "iostream error",
)


class NotWrittenError(OSError):
    """Raised when a file could not be written: which one, why, and what to do about it."""

    def __init__(self, path: str | Path, number: int | None, reason: str) -> None:
        remedy = REMEDIES.get(number or 0, "name another place")
        super().__init__(number, f"{path} could not be written ({reason}): {remedy}")
        self.path = str(path)

    def __str__(self) -> str:
        return str(self.args[1])


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A context in which what fails to be written becomes a NotWrittenError that names `path`.

    Libraries that write through other languages say that the disk is full in words of their own.
    """
    try:
        yield
    except NotWrittenError:
        raise
    except OSError as error:
        if isinstance(error, BrokenPipeError | BlockingIOError | InterruptedError):
            raise
        raise NotWrittenError(path, error.errno, error.strerror or str(error)) from error
    except Exception as error:
        said = f"{error} {error.__context__}".lower()
        if not any(word in said for word in _FULL):
            raise
        raise NotWrittenError(path, errno.ENOSPC, "no space left on device") from error


def user_path(path: str | Path) -> Path:
    """The path with `~` as the home folder: shells leave it alone inside `--out=~/x`."""
    return Path(path).expanduser()


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
    path = user_path(folder).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{folder} exists and is not overwritten; name a new folder")
    check_folder_of(path / "file")
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; flushed to disk and moved there in one step at the end.

    When the block raises, the old file stays as it was and the new one is removed; what processes
    that were killed have left beside it is removed as well. The file has the mode that the umask
    gives, whatever wrote it. Raises NotWrittenError where it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    fresh = beside(path)
    try:
        with writing(path):
            fresh.touch()
            mode = fresh.stat().st_mode & 0o777
            yield fresh
            fresh.chmod(mode)
            flush_file(fresh)
            fresh.replace(path)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_tree(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write files into; flushed and moved there whole at the end.

    As `replacing`. A crash in the instant in which an old folder makes way leaves that beside,
    under a hidden name; the next who writes there moves it back first.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    fresh = beside(folder)
    try:
        with writing(folder):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            yield fresh
            mode = fresh.stat().st_mode & 0o666
            for path in fresh.rglob("*"):
                if path.is_file():
                    path.chmod(mode)
                    flush_file(path)
            _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def flush_file(path: Path) -> None:
    """Wait until a file lies on the disk itself."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _swap(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
        return
    old = beside(folder, OLD)
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as fresh:
        # Names of files need not be UTF-8; what cannot be written is escaped.
        fresh.write_text(text, encoding="utf-8", errors="backslashreplace")


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
    path = user_path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: {what} are written as {', '.join(suffixes)}; change the suffix")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; name another file or ask for it to be overwritten")
    check_folder_of(path)
    return path
