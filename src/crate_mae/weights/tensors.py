"""Tensors into models, exactly or not at all: what is missing, unexpected or re-shaped, by name.

And tensors in files that tell when they were damaged: safetensors files have no checksum of their
own, so that ours carry one among their metadata; PyTorch's zip files have one for every part.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crate_mae.common.file_kinds import file_kind

CHECKSUM = "crate_mae_sha256"
"""The entry of a safetensors file's metadata that holds the SHA-256 of all the rest."""
MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file: the limit of the format."""


class IncompleteWeightsError(ValueError):
    """Raised when tensors and model do not match one to one; the message lists the differences."""


class WithoutInitialValues(TorchFunctionMode):
    """A context in which modules are made on the meta device and no initial value is drawn.

    For modules whose tensors come from a file. Drawing on the meta device draws nothing, but the
    first time it imports a thousand modules of torch's compiler, which takes a second.
    """

    def __enter__(self) -> "WithoutInitialValues":
        self._meta = torch.device("meta")
        self._meta.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        self._meta.__exit__(*reason)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The tensor itself where it would be filled; else what the function gives."""
        tensor = args[0] if args else (kwargs or {}).get("tensor")
        if func in _FILLING and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **(kwargs or {}))


_FILLING = {
    getattr(owner, name)
    for owner, names in (
        (Tensor, ("normal_", "uniform_", "zero_", "fill_", "clamp_", "mul_", "add_", "erfinv_")),
        (nn.init, ("normal_", "uniform_", "constant_", "ones_", "zeros_", "kaiming_uniform_",
                   "trunc_normal_", "xavier_uniform_")),
    )
    for name in names
}  # fmt: skip


def load_exactly(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    origin: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Copy `tensors` into `model` when names and shapes match one to one.

    `names` gives the names that messages use, where the origin has others than the model.
    Raises IncompleteWeightsError with counts and names otherwise, and ValueError for tensors that
    are no floating-point numbers; the model is then unchanged.
    """
    check_match({k: tuple(v.shape) for k, v in tensors.items()}, model, origin=origin, names=names)
    shown = names or {}
    strange = [
        f"{shown.get(k, k)} {v.dtype}" for k, v in tensors.items() if not v.is_floating_point()
    ]
    if strange:
        raise ValueError(
            f"{origin} holds {len(strange)} tensors that are no floating-point numbers:"
            f" {_listed(strange)}"
        )
    model.load_state_dict(dict(tensors), strict=True)


def check_match(
    found: Mapping[str, tuple[int, ...]],
    model: nn.Module,
    *,
    origin: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Raise IncompleteWeightsError unless `found` names and shapes are the model's.

    The model may lie on the meta device. `names` as in `load_exactly`.
    """
    shown = names or {}
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [
        f"{shown.get(key, key)} {found[key]} instead of {wanted[key]}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    if not (missing or unexpected or reshaped):
        return
    lines = [f"{origin} does not fit: {len(wanted) - len(missing) - len(reshaped)} tensors match"]
    decoder = [key for key in wanted if not key.startswith(("encoder.", "head."))]
    if decoder and set(missing) >= set(decoder):
        lines.append(
            f"it holds an encoder only (0 of {len(decoder)} decoder tensors); reconstruction and"
            " pre-training need a full checkpoint"
        )
    for what, listed in (
        ("missing", [shown.get(key, key) for key in missing]),
        ("unexpected", unexpected),
        ("re-shaped", reshaped),
    ):
        if listed:
            lines.append(f"{len(listed)} {what}: {_listed(listed)}")
    raise IncompleteWeightsError("; ".join(lines))


def check_finite(tensors: Iterable[tuple[str, Tensor]], *, origin: str) -> None:
    """Raise ValueError naming tensors that hold values which are not finite."""
    bad = [
        name
        for name, value in tensors
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise ValueError(
            f"{origin} holds weights that are not finite, in {_listed(bad)}: nothing can be"
            " computed with them; take an older checkpoint or train again"
        )


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whose metadata hold a checksum of the rest.

    Equal tensors and metadata give equal files.
    """
    plain = save(dict(tensors), metadata=None)
    header, data = _split(plain)
    entries = json.loads(header)
    about = dict(sorted((metadata or {"format": "pt"}).items()))
    about[CHECKSUM] = _digest(entries, about, data)
    text = json.dumps({"__metadata__": about, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(data)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError naming it when it is broken or was changed.

    A file without our checksum, from elsewhere, is taken as it is.
    """
    try:
        check_safetensors(path)
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(not_complete(path, str(path), str(error))) from error


def not_complete(path: Path, name: str, why: str) -> str:
    """What to say of a file that cannot be read as safetensors: what it is, where that is known."""
    kind = file_kind(path)
    if kind is not None:
        return f"{name} is no safetensors file, but {kind}"
    empty = path.is_file() and path.stat().st_size == 0
    return f"{name} is no complete safetensors file: {'it is empty' if empty else why}"


def check_safetensors(path: Path) -> bool:
    """Whether a file carries our checksum; ValueError where it does, and its content is another."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if size <= MAX_HEADER_BYTES else b""
        try:
            entries = json.loads(header)
            about = dict(entries.pop("__metadata__", {}))
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ValueError(not_complete(path, str(path), "its header is damaged")) from None
        wanted = about.pop(CHECKSUM, None)
        if wanted is None:
            return False
        if _digest(entries, about, file) != wanted:
            raise ValueError(
                f"{path} is damaged: its content is not what its checksum was made of. Copy it"
                " again from where it came"
            )
    return True


def check_zip(path: Path) -> bool:
    """Whether a file is a zip archive, as PyTorch writes them; ValueError where it is damaged.

    PyTorch itself reads values without a look at their checksums. A file that is no archive, as old
    versions of PyTorch wrote them, has none: nothing tells whether it is damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("its parts claim more bytes than it has")
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, EOFError,
            RuntimeError) as error:  # fmt: skip
        raise ValueError(f"it is damaged: {error}") from error
    if bad is not None:
        raise ValueError(f"it is damaged: the checksum of its part {bad} is another")
    return True


def _split(file: bytes) -> tuple[bytes, memoryview]:
    """(header, data) of a safetensors file."""
    size = int.from_bytes(file[:8], "little")
    return file[8 : 8 + size], memoryview(file)[8 + size :]


def _digest(
    entries: Mapping[str, object], about: Mapping[str, str], data: BinaryIO | memoryview
) -> str:
    digest = hashlib.sha256(json.dumps([entries, about], sort_keys=True).encode())
    if isinstance(data, memoryview):
        digest.update(data)
    else:
        while block := data.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _listed(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
