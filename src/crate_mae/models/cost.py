"""What a computation costs in floating-point operations, counted, not estimated.

A multiplication with its addition counts as two. Only matrix products, convolutions and fused
attention are counted (by `torch.utils.flop_counter`); norms, activations and the optimiser's
updates are not: they are a small share of the operations, though not always of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.backbone import Backbone
from crate_mae.models.config import ModelConfig
from crate_mae.models.masks import num_kept


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs."""

    config: ModelConfig
    parameters: int
    """Trainable ones."""
    step: int
    """Floating-point operations of one training step on the batch, forward and backward."""
    images: int
    """Images in the batch."""

    @property
    def encode(self) -> int:
        """Floating-point operations to `encode` the batch, counted when they are asked for."""
        return _encode_flops(self.config, self.images)


def counted_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of a call that really runs."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def model_cost(
    config: ModelConfig, *, batch: int, ratio: float = 0.75, recompute: bool = False
) -> Cost:
    """The cost of a CRATE-MAE on batches of so many images with a share `ratio` removed.

    `recompute` counts a step that computes layers again in the backward pass, to save memory.
    Nothing is computed and no memory is taken: the tensors are without values.
    Raises ValueError for a ratio that removes or keeps no patch.
    """
    return _counted(config, batch, num_kept(config.num_patches, ratio), recompute)


@lru_cache(maxsize=256)  # a plan asks for the same models again and again
def _counted(config: ModelConfig, batch: int, kept: int, recompute: bool) -> Cost:
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        model = CrateMAE(config)
        model.recompute_layers(recompute)
        images = torch.empty(batch, config.channels, *config.image_hw)
        mask = torch.empty(batch, config.num_patches, dtype=torch.bool)
        return Cost(
            config=config,
            parameters=parameter_count(model),
            step=counted_flops(lambda: _step(model, images, mask, kept)),
            images=batch,
        )


def parameter_count(model: Backbone | nn.Module) -> int:
    """Number of trainable parameters; fixed position tables do not count."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@lru_cache(maxsize=256)
def _encode_flops(config: ModelConfig, batch: int) -> int:
    with FakeTensorMode(), torch.random.fork_rng(devices=[]), torch.no_grad():
        model = CrateMAE(config).eval()
        images = torch.empty(batch, config.channels, *config.image_hw)
        return counted_flops(lambda: model.encode(images))


def _step(model: CrateMAE, images: Tensor, mask: Tensor, kept: int) -> None:
    # Not `forward`, whose checks look at the values of the mask, which has none here.
    latent = model.train().encode_masked(images, mask, kept)
    prediction = model.decode(latent, mask, model.config.grid)
    torch.autograd.backward(model.loss(images, prediction, mask))
