"""Attention of subspace coordinates with themselves: softmax(w w^T / sqrt(p)) w, as fast as can be.

Shapes: B images, N tokens, K heads, p = width of a head; w is (B, K, N, p).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 160
"""Up to so many tokens a CPU is faster with all N x N weights made than with its fused kernel."""


def attend(w: Tensor) -> Tensor:
    """softmax(w w^T / sqrt(p)) w for subspace coordinates w (B, K, N, p): (B, K, N, p).

    Computed by torch's fused kernel, which makes no N x N tensor, except for short sequences on a
    CPU: there the weights are made, with a gradient of our own, as query, key and value are one.
    Half precision is widened on CPUs, where that kernel's backward pass is slower in it.
    `benchmarks/attention_bound.py` measures both.
    """
    if w.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(w, w, w)
    with torch.autocast("cpu", enabled=False):
        wide = w.float() if w.dtype in (torch.bfloat16, torch.float16) else w
        if w.shape[-2] <= SHORT:
            return _Short.apply(wide.contiguous())[0].to(w.dtype)  # type: ignore[no-any-return]
        return F.scaled_dot_product_attention(wide, wide, wide).to(w.dtype)


def _weights(w: Tensor) -> Tensor:
    return (w @ w.mT).div_(math.sqrt(w.shape[-1])).softmax(dim=-1)


class _Short(torch.autograd.Function):
    """y = a w with a = softmax(s), s = w w^T / sqrt(p).

    With g the gradient of y, that of w has three parts, for value, query and key:
    a^T g + (ds + ds^T) w / sqrt(p), where ds = a * (g w^T - <g, y>) row by row.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor) -> tuple[Tensor, Tensor]:
        a = _weights(w)
        return a @ w, a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        y, a = output
        ctx.mark_non_differentiable(a)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, y, a)
        ctx.save_for_forward(*inputs, y, a)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> Tensor | None:
        if gradient is None:
            return None
        w, y, a = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative: through the weights as well
            a = _weights(w)
            y = a @ w
        scale = 1 / math.sqrt(w.shape[-1])
        ds = (gradient @ w.mT - (gradient * y).sum(-1, keepdim=True)) * a
        found: Tensor = a.mT @ gradient + (ds + ds.mT) @ (scale * w)
        return found

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        w, _, a = ctx.saved_tensors
        half = tangent @ w.mT / math.sqrt(w.shape[-1])
        ds = half + half.mT
        da = (ds - (a * ds).sum(-1, keepdim=True)) * a
        return da @ w + a @ tangent, None
