"""Bases of tokens in files, so that other images get the same colours. Nothing is unpickled."""

import json
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from crate_mae.common.files import check_file_target, replacing, user_path
from crate_mae.dense.token_maps import TokenKind
from crate_mae.dense.token_pca import MAX_COMPONENTS, Foreground, TokenBasis
from crate_mae.models.config import MAX_DIM
from crate_mae.weights.tensors import check_safetensors, write_safetensors

FORMAT = "crate-mae-basis/1"
FACTS = "crate_mae"
BASIS_SUFFIXES = (".safetensors",)


def save_basis(
    basis: TokenBasis, path: str | Path, *, weights_hash: str | None, overwrite: bool = False
) -> Path:
    """The path of a .safetensors file that `load_basis` reads.

    `weights_hash` is the SHA-256 of the weights that the tokens come from.
    Raises ValueError for another suffix and FileExistsError for a file that is there, unless
    `overwrite` is set.
    """
    path = check_basis_target(path, overwrite=overwrite)
    names = ("mean", "axes", "explained", "low", "high")
    tensors = {name: getattr(basis, name).contiguous() for name in names}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "quantile": basis.quantile,
        "tokens": basis.tokens,
        "images": basis.images,
        "layer": basis.layer,
        "kind": basis.kind,
        "weights_sha256": weights_hash,
        "foreground": None,
    }
    if basis.foreground is not None:
        step = basis.foreground
        tensors |= {"foreground_mean": step.mean, "foreground_axis": step.axis.contiguous()}
        facts["foreground"] = {
            "threshold": step.threshold,
            "above": step.above,
            "rule": step.rule,
        }
    with replacing(path) as fresh:
        write_safetensors(tensors, fresh, metadata={FACTS: json.dumps(facts)})
    return path


def check_basis_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """The path, once a basis can be saved there; raises as `save_basis`."""
    return check_file_target(path, BASIS_SUFFIXES, what="bases", overwrite=overwrite)


def load_basis(path: str | Path, *, weights_hash: str | None = None) -> TokenBasis:
    """The basis that `save_basis` wrote.

    Raises FileNotFoundError when there is no file, and ValueError for one that it did not write
    and, given a `weights_hash`, for one whose tokens came from other weights.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        basis, made_from = _read(path)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is no basis file of ours: {reason}") from error
    if weights_hash is not None and made_from not in (None, weights_hash):
        raise ValueError(
            f"{path} was fitted on tokens of weights {made_from[:12]}..., not of these"
            f" ({weights_hash[:12]}...): colours would mean nothing; fit a basis anew"
        )
    return basis


def _read(path: Path) -> tuple[TokenBasis, str | None]:
    from safetensors import safe_open

    check_safetensors(path)
    with safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {})[FACTS])
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r} is not {FORMAT!r}")
        count, width = file.get_slice("axes").get_shape()
        if not (1 <= count <= MAX_COMPONENTS and count <= width <= MAX_DIM):
            raise ValueError(f"{count} axes of width {width}")
        if facts["kind"] not in get_args(TokenKind):
            raise ValueError(f"kind {facts['kind']!r}")

        def read(name: str, *shape: int) -> Tensor:
            found = tuple(file.get_slice(name).get_shape())
            if found != shape:
                raise ValueError(f"{name} is {found}, not {shape}")
            tensor: Tensor = file.get_tensor(name).double()
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} is not finite")
            return tensor

        step = facts["foreground"]
        basis = TokenBasis(
            mean=read("mean", width),
            axes=read("axes", count, width),
            explained=read("explained", count),
            low=read("low", count),
            high=read("high", count),
            quantile=float(facts["quantile"]),
            tokens=int(facts["tokens"]),
            images=int(facts["images"]),
            layer=None if facts["layer"] is None else int(facts["layer"]),
            kind=facts["kind"],
            foreground=None
            if step is None
            else Foreground(
                mean=read("foreground_mean", width),
                axis=read("foreground_axis", width),
                threshold=float(step["threshold"]),
                above=bool(step["above"]),
                rule=str(step["rule"]),
            ),
        )
        made_from = facts["weights_sha256"]
        return basis, None if made_from is None else str(made_from)
