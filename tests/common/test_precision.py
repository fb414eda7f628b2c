"""One switch over torch's several for how float32 products round, put back as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from crate_mae.common.precision import float32_products

CUDA: Any = torch.backends.cuda
CUDNN: Any = torch.backends.cudnn
MKLDNN: Any = torch.backends.mkldnn
PLACES = {"cuda": CUDA.matmul, "conv": CUDNN.conv, "rnn": CUDNN.rnn, "cpu": MKLDNN.matmul}


def _state() -> dict[str, str]:
    return {name: place.fp32_precision for name, place in PLACES.items()}


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = _state()
    yield
    torch.set_float32_matmul_precision("highest")
    for name, place in PLACES.items():
        place.fp32_precision = before[name]


@pytest.mark.parametrize(
    "caller",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(CUDA.matmul, "fp32_precision", "tf32"),
        lambda: setattr(CUDNN.conv, "fp32_precision", "ieee"),
        lambda: setattr(MKLDNN.matmul, "fp32_precision", "ieee"),
    ],
    ids=["untouched", "older", "products", "convolutions", "cpu"],
)
@pytest.mark.parametrize("tf32", [True, False])
def test_products_round_as_asked_and_all_is_put_back(tf32: bool, caller: Any) -> None:
    caller()
    before = _state()
    with float32_products(tf32=tf32):
        inside = _state()
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert CUDA.matmul.allow_tf32 == tf32
        assert CUDNN.allow_tf32 == tf32
        with float32_products(tf32=not tf32):
            assert torch.get_float32_matmul_precision() == ("highest" if tf32 else "high")
        assert _state() == inside
    for value in inside.values():
        assert (value == "tf32") == tf32
    assert _state() == before


def test_an_error_inside_puts_back_too() -> None:
    before = _state(), torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), float32_products(tf32=True):
        raise KeyError
    assert (_state(), torch.get_float32_matmul_precision()) == before
