"""Fresh weights of every family: their spread, their bounds, and that CRATE-MAE's stay its own."""

import math
from typing import Any

import pytest
import torch
from model_cases import tiny
from torch import Tensor

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import ModelConfig

WIDE: dict[str, Any] = {"dim": 120, "num_heads": 3, "decoder_num_heads": 3, "depth": 1}


def fresh(**changes: Any) -> tuple[ModelConfig, CrateClassifier]:
    torch.manual_seed(0)
    config = tiny(**{**WIDE, "image_size": (32, 32), **changes})
    return config, CrateClassifier(config, num_classes=50)


def largest(values: Tensor | None) -> float:
    """The largest absolute value."""
    assert values is not None
    return float(values.detach().abs().max())


def is_uniform(values: Tensor, bound: float) -> bool:
    """Whether values fill -bound to bound evenly."""
    values = values.detach()
    edge = float(values.abs().max())
    return 0.97 * bound < edge <= bound * (1 + 1e-6) and is_spread(values, bound / math.sqrt(3))


def is_spread(values: Tensor, std: float) -> bool:
    """Whether values have a mean near 0 and this standard deviation."""
    values = values.detach()
    error = 5 / math.sqrt(values.numel())
    return abs(float(values.mean())) < error * std and (abs(float(values.std()) / std - 1) < error)


def test_crate_draws_as_torch_does_and_positions_of_std_one() -> None:
    config, model = fresh(embedding="norm-linear-norm", positions="learned", initial_values="crate")
    (layer,) = model.encoder.layers
    assert is_uniform(layer.mssa.subspaces.weight, 1 / math.sqrt(120))
    assert layer.mssa.output is not None
    assert is_uniform(layer.mssa.output.weight, 1 / math.sqrt(120))
    assert largest(layer.mssa.output.bias) > 0.8 / math.sqrt(120)
    assert is_uniform(layer.dictionary, math.sqrt(6 / 120))
    assert is_spread(model.encoder.positions, 1)
    assert is_spread(model.encoder.class_token, 1)
    linear = model.encoder.patch_embed.linear
    assert is_uniform(linear.weight, 1 / math.sqrt(config.patch_dim))
    assert is_uniform(model.head.weight, 1 / math.sqrt(120))
    assert largest(model.head.bias) > 0


def test_crate_alpha_draws_as_its_jax_original() -> None:
    config, model = fresh(
        positions="learned",
        sparse_step="decoupled",
        overcomplete=4,
        output_projection="free-no-bias",
        initial_values="crate-alpha",
    )
    (layer,) = model.encoder.layers
    assert layer.mssa.output is not None
    assert is_spread(layer.mssa.subspaces.weight, 0.02)
    assert is_spread(layer.mssa.output.weight, 0.02)
    step = layer.sparse_step
    assert step is not None
    assert step.returning is not None
    for matrix in (step.dictionary, step.returning):
        assert is_uniform(matrix, math.sqrt(6 / 120))
    assert is_spread(model.encoder.positions, 0.02)
    assert is_spread(model.encoder.class_token, 1e-6)
    linear = model.encoder.patch_embed.linear
    assert is_uniform(linear.weight, math.sqrt(6 / config.patch_dim))
    assert linear.bias is not None
    assert largest(linear.bias) == 0
    assert is_spread(model.head.weight, 0.02)
    assert largest(model.head.bias) == 0


def test_tost_draws_truncated_normals() -> None:
    _, model = fresh(attention="tssa", subspace_bias=True, initial_values="tost")
    (layer,) = model.encoder.layers
    for linear in (layer.mssa.subspaces, layer.mssa.output, model.head):
        assert linear is not None
        assert is_spread(linear.weight, 0.02)
        assert largest(linear.bias) == 0
    assert torch.equal(layer.mssa.get_parameter("temperature"), torch.ones(3, 1))
    assert is_spread(model.encoder.class_token, 0.02)


def test_crate_mae_draws_xavier_and_small_tokens() -> None:
    config, model = fresh(positions="learned")
    (layer,) = model.encoder.layers
    assert is_uniform(layer.mssa.subspaces.weight, math.sqrt(6 / 240))
    assert is_spread(model.encoder.positions, 0.02)
    filters = model.encoder.patch_embed.linear.weight
    assert is_uniform(filters, math.sqrt(6 / (120 + config.patch_dim)))


@pytest.mark.parametrize("family", ["crate", "crate-alpha", "tost"])
def test_the_rest_of_the_autoencoder_follows(family: Any) -> None:
    torch.manual_seed(0)
    model = CrateMAE(tiny(**WIDE, initial_values=family))
    (layer, *_) = model.encoder.layers
    own = float(layer.mssa.subspaces.weight.detach().std())
    assert float(model.prediction.weight.detach().std()) == pytest.approx(own, rel=0.05)
    assert is_spread(model.mask_token, 0.02)
    for mirror in model.decoder:
        assert float(mirror.mssa.subspaces.weight.detach().std()) == pytest.approx(own, rel=0.05)
