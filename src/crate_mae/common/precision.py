"""How float32 matrix products round: one switch over torch's several."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """A context in which float32 products and convolutions use TF32, where a device has it, or not.

    Put back after it, however the caller had set it.
    """
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    places = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul)
    before = [place.fp32_precision for place in places]
    older_products = older_convolutions = None
    with suppress(RuntimeError):  # torch's older way of asking refuses what only the newer one set
        older_products = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        older_convolutions = cudnn.allow_tf32
    # Set in the older way, which torch.compile and Lightning ask in.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    cudnn.allow_tf32 = tf32  # where torch's default is True
    try:
        yield
    finally:
        if older_products is not None:
            torch.set_float32_matmul_precision(older_products)
        if older_convolutions is not None:
            cudnn.allow_tf32 = older_convolutions
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
