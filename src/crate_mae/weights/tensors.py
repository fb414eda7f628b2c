"""Tensors into models, exactly or not at all: what is missing, unexpected or re-shaped, by name."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


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
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
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
    strange = [f"{k} {v.dtype}" for k, v in tensors.items() if not v.is_floating_point()]
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


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError naming the file when it is broken."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error


def _listed(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
