"""CRATE-alpha's `.npz` files, as JAX writes them, under the names of its PyTorch port.

Nothing is unpickled: an array of Python objects is refused. An optimiser's arrays, which such files
hold beside the model's, are not read at all.
"""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crate_mae.common.npz_members import check_names, read_header, read_member

OPTIMISER = ("opt/", "opt_state/", "extra/")
"""Where the arrays that are not the model's lie."""
MAX_ARRAY = 1 << 32
"""Bytes of the largest array that is read."""

_ATTENTION = "MultiHeadDotProductSubspaceAttention_0"
_BLOCK = "OvercompleteISTABlock_0"
_TOP = {
    "cls": "cls_token",
    "pos_embedding": "pos_embedding",
    "embedding/kernel": "conv1.weight",
    "embedding/bias": "conv1.bias",
    "head/kernel": "mlp_head.1.weight",
    "head/bias": "mlp_head.1.bias",
    "encoder_norm/scale": "mlp_head.0.weight",
    "encoder_norm/bias": "mlp_head.0.bias",
}
_IN_BLOCK = {
    "LayerNorm_0/scale": "0.norm.weight",
    "LayerNorm_0/bias": "0.norm.bias",
    "LayerNorm_1/scale": "1.norm.weight",
    "LayerNorm_1/bias": "1.norm.bias",
    f"{_ATTENTION}/proj/kernel": "0.fn.qkv.weight",
    f"{_ATTENTION}/out/kernel": "0.fn.to_out.0.weight",
    f"{_BLOCK}/D": "1.fn.D",
    f"{_BLOCK}/D1": "1.fn.D1",
}


def read_jax(path: Path) -> tuple[dict[str, Tensor], int, list[str]]:
    """(tensors by the port's names, number of heads, names that were passed over) of a `.npz` file.

    Heads stand in the shape of the projections. Raises ValueError for files that are no archive of
    plain arrays, for arrays larger than 4 GiB, and where the model's own are missing.
    """
    state: dict[str, Tensor] = {}
    heads: set[int] = set()
    passed_over = []
    try:
        with zipfile.ZipFile(path) as archive:
            check_names(archive)
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                key = name.removeprefix("params/")
                if name.startswith(OPTIMISER):
                    passed_over.append(name)
                    continue
                array = _array(archive, entry)
                published = _port_name(key)
                if published is None:
                    state[key] = torch.from_numpy(array)  # it is then named as unexpected
                    continue
                if published in state:
                    raise ValueError(f"{published} is held twice")
                state[published], count = _as_the_port(published, array)
                heads |= {count} - {0}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is no complete .npz file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} could not be read as plain arrays: {error}") from error
    if len(heads) != 1:
        found = ", ".join(map(str, sorted(heads))) or "none"
        raise ValueError(
            f"{path} is no complete CRATE-alpha checkpoint: heads by its projections: {found}"
        )
    count = heads.pop()
    if count == 1:
        _without_output_maps(state, path)
    return state, count, passed_over


def to_jax(state: dict[str, Tensor], num_heads: int) -> dict[str, "np.ndarray[Any, Any]"]:
    """Arrays by JAX's names of a state under the port's names.

    With one head, JAX's code has an output map where the port has none: the identity.
    """
    top = {published: name for name, published in _TOP.items()}
    inside = {published: name for name, published in _IN_BLOCK.items()}
    found = {}
    for key, value in state.items():
        array = value.detach().cpu().numpy()
        block = re.match(r"transformer\.layers\.(\d+)\.(.+)", key)
        name = top[key] if block is None else inside[block[2]]
        if key == "conv1.weight":
            array = array.transpose(2, 3, 1, 0)
        elif key == "mlp_head.1.weight":
            array = array.T
        elif name.endswith("proj/kernel"):
            array = array.T.reshape(array.shape[1], num_heads, -1)
        elif name.endswith("out/kernel"):
            array = array.T.reshape(num_heads, -1, array.shape[0])
        place = "" if block is None else f"Transformer/encoderblock_{block[1]}/"
        found[f"params/{place}{name}"] = np.ascontiguousarray(array)
        if num_heads == 1 and name.endswith("proj/kernel"):
            name = name.replace("proj/kernel", "out/kernel")
            found[f"params/{place}{name}"] = np.eye(len(array), dtype=array.dtype)[None]
    return found


def _without_output_maps(state: dict[str, Tensor], path: Path) -> None:
    """Take the output maps out of a state of one head; ValueError for one that does something."""
    for key in [key for key in state if key.endswith("to_out.0.weight")]:
        W, U = state.pop(key), state.get(key.replace("to_out.0", "qkv"))
        if U is None:  # it is then named as missing
            continue
        if W.shape != U.shape or not torch.equal(W, torch.eye(len(W), dtype=W.dtype)):
            raise ValueError(
                f"{path} has one head and an output map, {key}, that is not the identity: with one"
                " head the layers here have none, as in the PyTorch port"
            )


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> "np.ndarray[Any, Any]":
    """One array of floating-point numbers, in the machine's order of bytes."""
    with archive.open(entry) as file:
        _, dtype = read_header(file)
    plain = dtype.hasobject or (dtype.kind == "f" and dtype.itemsize <= 8)
    if entry.file_size > MAX_ARRAY or not plain:
        raise ValueError(f"{entry.filename} holds {dtype}, no floating-point numbers, or too many")
    array = read_member(archive, entry)
    if array is None:
        raise ValueError(f"{entry.filename} holds Python objects, which are not read")
    return array.astype(dtype.newbyteorder("="))


def _port_name(key: str) -> str | None:
    if key in _TOP:
        return _TOP[key]
    block = re.fullmatch(r"Transformer/encoderblock_(\d{1,4})/(.+)", key)
    if block is None or block[2] not in _IN_BLOCK:
        return None
    return f"transformer.layers.{int(block[1])}.{_IN_BLOCK[block[2]]}"


def _as_the_port(name: str, array: "np.ndarray[Any, Any]") -> tuple[Tensor, int]:
    """(tensor in the port's shape, heads that its own shape tells, 0 where it tells none)."""
    heads = 0
    if name == "conv1.weight" and array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif name == "mlp_head.1.weight" and array.ndim == 2:
        array = array.T
    elif name.endswith("fn.qkv.weight") and array.ndim == 3:
        heads = array.shape[1]
        array = array.reshape(len(array), -1).T
    elif name.endswith("to_out.0.weight") and array.ndim == 3:
        heads = len(array)
        array = array.reshape(-1, array.shape[-1]).T
    return torch.from_numpy(np.ascontiguousarray(array)), heads
