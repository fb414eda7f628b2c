"""How fast the model could be here at best: its matrix products alone, at this machine's rate.

The least floating-point operations that the model needs, divided by the rate at which torch.mm
multiplies matrices of the model's own shape. What counts: the linear maps, the products inside
attention (as fused attention does them: the backward pass makes w w^T again) and, for a training
step, making every M from D once and its gradient. What does not: norms, activations, additions,
the optimiser, moving memory. Attention's products are counted at the same rate, though their
shapes are less favourable. So 1.0 cannot be reached; the distance tells what is left to gain.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.cost import counted_flops, model_cost
from speed.arithmetic import (
    GradientStep,
    WrittenCrate,
    folded_product,
    fused_attention,
    two_products,
)
from speed.harness import Rounds, spread
from speed.steps import Job
from speed.subjects import COMPILED, SUBJECTS, VISIBLE, subject_of

GEMM = "gemm"
"""The name under which matrix products are timed among the subjects."""
PRODUCTS = 8
"""Products in one timed call, so that starting a call does not count."""


def least_flops(job: Job, *, visible: bool = False) -> int:
    """The least floating-point operations of the job's work, with mask tokens in the encoder.

    Features need one product with M in every ISTA step: M changes with the weights alone. A
    training step takes the cheapest of x M with M made from D, two products, and what the library
    itself does. With `visible` the encoder of a training step sees visible patches only, and what
    the library itself does counts.
    """
    if job.work == "encode":
        return _counted(job, lambda x, D, _: x @ D)  # counts as x M does
    if visible:
        config = replace(job.config, mask_tokens="decoder")
        return model_cost(config, batch=job.batch, ratio=job.ratio).step
    own = model_cost(replace(job.config, mask_tokens="encoder"), batch=job.batch, ratio=job.ratio)
    return min(own.step, *(_counted(job, step) for step in (folded_product, two_products)))


def _counted(job: Job, gradient_step: GradientStep) -> int:
    config = replace(job.config, mask_tokens="encoder")
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        model = WrittenCrate(CrateMAE(config), attend=fused_attention, gradient_step=gradient_step)
        images = torch.empty(job.batch, config.channels, *config.image_hw)
        mask = torch.empty(job.batch, config.num_patches, dtype=torch.bool)

        def run() -> None:
            if job.work == "train":
                torch.autograd.backward(model(images, mask))
                return
            with torch.no_grad():
                model.encode(images)

        return counted_flops(run)


def gemm_call(job: Job) -> Callable[[], Tensor]:
    """A call that multiplies (T, d) by (d, d) `PRODUCTS` times: T the tokens of a batch."""
    kind = torch.bfloat16 if job.precision == "bf16-mixed" else torch.float32
    generator = torch.Generator().manual_seed(job.seed)
    rows, d = job.tokens, job.config.dim
    left, right = (
        torch.randn(shape, generator=generator).to(job.device, kind)
        for shape in ((rows, d), (d, d))
    )
    made = torch.empty_like(left)

    def call() -> Tensor:
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=made)
        return made

    return call


def limit_of(job: Job, times: Rounds) -> dict[str, Any]:
    """The limit in seconds and each subject's share of it, round by round, JSON-able.

    `times` holds rounds of `GEMM` (calls of `gemm_call`). A share is limit / time: 1 would be
    matrix products and nothing else. Only subjects that compute what `crate` computes have one, and
    `crate-visible`, of its own operations ("visible_flops").
    """
    flops, d = least_flops(job), job.config.dim
    rates = [PRODUCTS * 2 * job.tokens * d * d / seconds for seconds in times[GEMM]]
    limits = [flops / rate for rate in rates]
    measured = subjects_only(times)
    needed = {name: flops for name in measured if subject_of(name).same}
    visible = [name for name in measured if name.removesuffix(COMPILED) == VISIBLE]
    needed |= dict.fromkeys(visible, least_flops(job, visible=True) if visible else 0)
    return {
        "flops": flops,
        **({"visible_flops": needed[visible[0]]} if visible else {}),
        "gemm_shape": [job.tokens, d, d],
        "flops_per_second": spread(rates).to_dict(),
        "seconds": spread(limits).to_dict(),
        "share": {
            name: spread(
                [
                    count / rate / seconds
                    for rate, seconds in zip(rates, measured[name], strict=True)
                ]
            ).to_dict()
            for name, count in needed.items()
        },
    }


def subjects_only(times: Mapping[str, list[float]]) -> Rounds:
    """The rounds of the subjects, without those of the matrix products beside them."""
    return {k: v for k, v in times.items() if k.removesuffix(COMPILED) in SUBJECTS}
