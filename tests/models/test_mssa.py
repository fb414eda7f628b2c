"""Output maps of MSSA, and attention alone: stored numbers of layers without a sparse step."""

from typing import Any

import pytest
import torch
from model_cases import family_golden, gap, under
from torch import Tensor

from crate_mae.models.layers import EncoderLayer
from crate_mae.models.mssa import MSSA

GOLDEN, CONFIG = family_golden("aot_derived")


def operator(state: dict[str, Tensor]) -> MSSA:
    made = MSSA(dim=CONFIG["dim"], num_heads=CONFIG["heads"], output_projection="free")
    made.load_state_dict(
        {
            "subspaces.weight": state["fn.qkv.weight"],
            "output.weight": state["fn.to_out.0.weight"],
            "output.bias": state["fn.to_out.0.bias"],
        }
    )
    return made.double()


@pytest.mark.parametrize("normed", [True, False], ids=["LN(z)", "z"])
def test_layers_of_attention_alone_agree_with_stored_numbers(normed: bool) -> None:
    name = "layers.ln" if normed else "layers.noln"
    tokens = GOLDEN["layers.in.tokens"].double().requires_grad_()
    z, layers = tokens, []
    for index in range(CONFIG["depth"]):
        state = under(GOLDEN, f"layers.param.{index}.")
        layer = EncoderLayer(dim=CONFIG["dim"], mssa=operator(state), ista=None).double()
        with torch.no_grad():
            layer.norm1.weight.copy_(state["norm.weight"])
            layer.norm1.bias.copy_(state["norm.bias"])
        z = layer(z) if normed else z + layer.mssa(z)
        assert gap(z, GOLDEN[f"{name}.{index}.out"]) <= 1e-10
        layers.append(layer)
    torch.autograd.backward((z * GOLDEN["layers.in.cotangent"]).sum())
    grads = under(GOLDEN, f"{name}.grad.")
    assert tokens.grad is not None
    assert gap(tokens.grad, grads["in.tokens"]) <= 1e-10
    for index, layer in enumerate(layers):
        assert layer.mssa.output is not None
        parts = {
            "fn.qkv.weight": layer.mssa.subspaces.weight,
            "fn.to_out.0.weight": layer.mssa.output.weight,
            "fn.to_out.0.bias": layer.mssa.output.bias,
            "norm.weight": layer.norm1.weight,
            "norm.bias": layer.norm1.bias,
        }
        for key, parameter in parts.items():
            if f"{index}.{key}" in grads:
                assert parameter.grad is not None
                assert gap(parameter.grad, grads[f"{index}.{key}"]) <= 1e-10, key


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_a_tied_output_map_agrees_with_stored_numbers(precision: torch.dtype) -> None:
    made = MSSA(dim=CONFIG["dim"], num_heads=CONFIG["heads"], output_projection="tied")
    with torch.no_grad():
        made.subspaces.weight.copy_(GOLDEN["tied.in.U"].transpose(1, 2).flatten(0, 1))
    made.to(precision)
    tokens = GOLDEN["layers.in.tokens"].to(precision).requires_grad_()
    out = tokens + CONFIG["eta"] * made(tokens)
    limit = 1e-10 if precision == torch.float64 else 1e-5
    assert gap(out, GOLDEN["tied.scaled.out"]) <= limit
    torch.autograd.backward((out * GOLDEN["layers.in.cotangent"]).sum())
    assert tokens.grad is not None
    assert gap(tokens.grad, GOLDEN["tied.scaled.grad.in.tokens"]) <= 10 * limit
    gradient = made.subspaces.weight.grad
    assert gradient is not None
    U = gradient.view(CONFIG["heads"], -1, CONFIG["dim"]).transpose(1, 2)
    assert gap(U, GOLDEN["tied.scaled.grad.U"]) <= 10 * limit


@pytest.mark.parametrize("projection", ["free", "free-no-bias", "tied"])
def test_output_maps_are_those_they_are_named_for(projection: Any) -> None:
    torch.manual_seed(0)
    made = MSSA(dim=6, num_heads=2, output_projection=projection).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    heads = made.attention(x) @ made.project(x)
    joined = torch.cat([heads[0, 0], heads[0, 1]], dim=-1)
    if projection == "tied":
        assert made.output is None
        expected = joined @ made.subspaces.weight
    else:
        assert made.output is not None
        assert (made.output.bias is None) == (projection == "free-no-bias")
        expected = joined @ made.output.weight.mT
        if made.output.bias is not None:
            expected = expected + made.output.bias
    assert gap(made(x)[0], expected) < 1e-12
