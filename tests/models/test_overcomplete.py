"""Overcomplete dictionaries: two ISTA steps from 0, against their definition, and where they go."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from model_cases import decoder_layer, encoder_layer, gap, images_for, make, some, tiny
from torch import Tensor

from crate_mae import load_model, save_model
from crate_mae.models.config import ModelConfig
from crate_mae.models.cost import model_cost, parameter_count
from crate_mae.models.overcomplete import OvercompleteISTA
from crate_mae.training.parse import parse_pretrain
from crate_mae.weights.published import to_reference
from crate_mae.whitebox.measures import lasso_objective
from speed.arithmetic import WrittenCrate, explicit_attention, three_products

ETA, LAMBDA = 0.3, 0.4


def ista_of(dim: int, times: int, *, seed: int = 0) -> OvercompleteISTA:
    torch.manual_seed(seed)
    made = OvercompleteISTA(dim=dim, overcomplete=times, step_size=ETA, sparsity=LAMBDA)
    return made.double()


def by_definition(ista: OvercompleteISTA, token: Tensor, steps: int) -> list[Tensor]:
    """0 and the codes after each proximal gradient step, entry by entry."""
    D = ista.dictionary.detach()
    atoms = D.shape[1]
    found = [torch.zeros(atoms, dtype=token.dtype)]
    for _ in range(steps):
        a = found[-1]
        missed = [
            float(token[i] - sum(D[i, j] * a[j] for j in range(atoms))) for i in range(len(D))
        ]
        moved = [
            float(a[j]) + ETA * sum(float(D[i, j]) * missed[i] for i in range(len(D)))
            for j in range(atoms)
        ]
        kept = [max(0.0, value - ETA * LAMBDA) for value in moved]
        found.append(torch.tensor(kept, dtype=token.dtype))
    return found


@given(dim=st.integers(1, 5), times=st.integers(2, 4), tokens=st.integers(1, 3))
@some
def test_codes_are_two_proximal_steps_from_zero(dim: int, times: int, tokens: int) -> None:
    ista = ista_of(dim, times)
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    flat = x.flatten(0, 1)
    codes = torch.stack([by_definition(ista, token, 2)[-1] for token in flat])
    codes = codes.view(2, tokens, times * dim)
    assert gap(ista.codes(x), codes) < 1e-12
    assert gap(ista(x), codes @ ista.dictionary.mT) < 1e-12
    assert bool((ista.codes(x) >= 0).all())


def test_each_step_lowers_the_lasso_objective_below_the_bound() -> None:
    ista = ista_of(6, 4)
    with torch.no_grad():
        ista.dictionary.mul_((0.99 / ETA) ** 0.5 / torch.linalg.matrix_norm(ista.dictionary, 2))
    x = torch.randn(1, 40, 6, dtype=torch.float64)
    path = [torch.stack(a) for a in zip(*(by_definition(ista, t, 2) for t in x[0]), strict=True)]
    D = ista.dictionary.detach()
    values = [float(lasso_objective(a[None], x, D, LAMBDA)) for a in path]
    assert values[0] == pytest.approx(float(x.square().sum(dim=-1).mean()) / 2)
    assert values == sorted(values, reverse=True)
    assert values[2] < values[1] < values[0]
    end = float(lasso_objective(ista.codes(x).detach(), x, D, LAMBDA))
    assert end == pytest.approx(values[2])


def test_gradients_are_those_of_the_equations() -> None:
    ista = ista_of(3, 2)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, D: Tensor) -> Tensor:
        made: Tensor = torch.func.functional_call(ista, {"dictionary": D}, (x,))
        return made

    assert torch.autograd.gradcheck(run, (x, ista.dictionary))


def test_layers_add_what_the_codes_stand_for() -> None:
    torch.manual_seed(0)
    common: dict[str, Any] = {"dim": 8, "num_heads": 2, "step_size": ETA, "sparsity": LAMBDA}
    config = tiny(**common, overcomplete=4)
    encoder, decoder = encoder_layer(config), decoder_layer(config)
    z = torch.randn(2, 3, 8)
    codes = encoder.codes(z)
    assert codes.shape == (2, 3, 32)
    assert 0 < float((codes == 0).float().mean()) < 1
    assert gap(encoder.sparsify(z), z + codes @ encoder.ista.dictionary.mT) < 1e-6
    assert isinstance(decoder.synthesis, OvercompleteISTA)
    assert decoder.synthesis.sparsity == LAMBDA
    own = decoder.synthesis.codes(decoder.norm1(z)) @ decoder.dictionary.mT
    assert gap(decoder.expand(z), z + own) < 1e-6
    plain = encoder_layer(tiny(**common))
    assert torch.equal(plain.codes(z), plain.sparsify(z))


def test_a_model_trains_encodes_and_survives_its_file(tmp_path: Path) -> None:
    config = tiny(overcomplete=3)
    model, images = make(config), images_for(config)
    torch.autograd.backward(model(images).loss)
    for layer in (*model.encoder.layers, *model.decoder):
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    model.eval()
    save_model(model, tmp_path / "weights")
    again = load_model(tmp_path / "weights")
    assert again.config == config
    assert torch.equal(again.encode(images), model.encode(images))


def test_costs_are_counted() -> None:
    """Four products with D a token and layer, in both halves of the model."""
    one, three = tiny(), tiny(overcomplete=3)
    added = parameter_count(make(three)) - parameter_count(make(one))
    assert added == (one.depth + one.decoder_depth) * 2 * one.dim**2
    tokens = 4 * (1 + one.num_patches)
    products = one.depth * (4 * 3 - 1) * 2 * tokens * one.dim**2
    folded = one.depth * 2 * one.dim**3  # M = I + eta (D - D^T D), once
    difference = model_cost(three, batch=4).encode - model_cost(one, batch=4).encode
    assert difference == products - folded


def test_the_configuration_is_written_and_read_back() -> None:
    assert ModelConfig().to_dict()["overcomplete"] == 1
    config = tiny(overcomplete=2)
    assert config.to_dict()["overcomplete"] == 2
    assert ModelConfig.from_dict(config.to_dict()) == config
    recipe, _ = parse_pretrain(["--config", "cifar10", "--model.overcomplete", "4"])
    assert recipe.to_dict()["model"]["overcomplete"] == 4
    plain, _ = parse_pretrain(["--config", "cifar10"])
    assert plain.to_dict()["model"]["overcomplete"] == 1


@pytest.mark.parametrize("times", [0, -1, 1.5, True, 65])
def test_other_numbers_of_atoms_are_refused(times: Any) -> None:
    with pytest.raises(ValueError, match="overcomplete"):
        tiny(overcomplete=times)


def test_what_the_published_code_cannot_say_is_refused() -> None:
    model = make(tiny(overcomplete=2))
    with pytest.raises(ValueError, match="2 times as many"):
        to_reference(model)
    with pytest.raises(ValueError, match="as many atoms as dimensions"):
        WrittenCrate(model, attend=explicit_attention, gradient_step=three_products)
