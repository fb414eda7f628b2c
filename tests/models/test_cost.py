"""Operations are counted as they are done: against formulas by hand and against real runs."""

import pytest
import torch

from crate_mae import build_model
from crate_mae.models.config import ModelConfig
from crate_mae.models.cost import counted_flops, model_cost, parameter_count

SMALL = {"dim": 32, "depth": 2, "num_heads": 4, "decoder_depth": 1, "decoder_num_heads": 2}


def config(**changes: object) -> ModelConfig:
    values = {"image_size": 16, "patch_size": 4, **SMALL, **changes}
    return ModelConfig(**values)  # type: ignore[arg-type]


def test_encode_is_the_sum_of_its_products() -> None:
    images, patches, d, depth = 24, 16, 32, 2
    tokens = images * (patches + 1)
    embed = 2 * images * patches * (4 * 4 * 3) * d
    mssa = 2 * (2 * tokens * d * d)  # U and W
    attention = 2 * (2 * images * (patches + 1) ** 2 * d)  # w w^T, and the weights times w
    ista = 2 * tokens * d * d + 2 * d**3  # x M, and D^T D inside M
    assert model_cost(config(), batch=images).encode == embed + depth * (mssa + attention + ista)


@pytest.mark.parametrize("mask_tokens", ["encoder", "decoder"])
def test_a_step_without_values_counts_as_a_real_one(mask_tokens: str) -> None:
    wanted = config(mask_tokens=mask_tokens)
    model = build_model(wanted).train()
    cost = model_cost(wanted, batch=8, ratio=0.5)
    images = torch.rand(8, 3, 16, 16)
    real = counted_flops(lambda: model(images, mask_ratio=0.5).loss.backward())
    assert cost.step == real
    assert cost.parameters == parameter_count(model) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("mask_tokens", ["encoder", "decoder"])
def test_computing_layers_again_is_counted(mask_tokens: str) -> None:
    wanted = config(mask_tokens=mask_tokens)
    model = build_model(wanted).train()
    model.recompute_layers()
    images = torch.rand(8, 3, 16, 16)
    real = counted_flops(lambda: model(images, mask_ratio=0.5).loss.backward())
    plain, again = (model_cost(wanted, batch=8, ratio=0.5, recompute=r) for r in (False, True))
    assert again.step == real > plain.step
    assert again.encode == plain.encode


def test_visible_only_encoding_costs_less() -> None:
    full, visible = (
        model_cost(config(mask_tokens=side), batch=8) for side in ("encoder", "decoder")
    )
    assert visible.step < full.step
    assert visible.encode == full.encode


def test_counting_draws_no_random_number() -> None:
    before = torch.random.get_rng_state()
    model_cost(config(), batch=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_ratio_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps no patch"):
        model_cost(config(), batch=2, ratio=0.99)
