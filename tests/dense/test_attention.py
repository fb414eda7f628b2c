"""Attention maps: rows against the model's own, against loops, and sums."""

import math

import pytest
import torch
import torch.nn.functional as F
from model_cases import FAMILY, VARIANTS, gap, images_for, make, tiny

from crate_mae.dense.attention import attention_maps, head_numbers, query_index
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.layers import Side


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("query", ["class", (1, 0)])
def test_maps_are_rows_of_the_models_attention(
    name: str, side: Side, query: tuple[int, int]
) -> None:
    model = make(VARIANTS[name]).eval()
    images = images_for(model.config)
    found = attention_maps(model, images, query=query, side=side)
    depth = model.config.depth if side == "encoder" else model.config.decoder_depth
    assert found.layers == tuple(range(depth))
    with torch.no_grad():
        whole = model.attention(images, list(range(depth)), side)
    index = 0 if found.query == "class" else 1 + model.config.grid[1]
    for place, layer in enumerate(found.layers):
        assert gap(found.weights[:, place], whole[layer][:, :, index]) < 1e-6
    assert gap(found.weights.sum(-1), torch.ones(2, depth, found.weights.shape[2])) < 1e-5
    assert found.patches.shape[-2:] == model.config.grid
    assert found.own.equal(found.weights[..., index])


def test_a_head_by_loops() -> None:
    model = make(tiny()).eval()
    images = images_for(model.config, batch=1)
    found = attention_maps(model, images, layers=[0], query=(0, 2)).weights[0, 0]
    layer = next(iter(model.encoder.layers))
    with torch.no_grad():
        x = model.encoder.embed(images)[0]
        normed = F.layer_norm(x, (12,), layer.norm1.weight, layer.norm1.bias, 1e-5).double()
        w = normed @ layer.mssa.subspaces.weight.double().mT
    for head in range(3):
        part = w[:, 4 * head : 4 * head + 4].tolist()
        products = [math.exp(sum(a * b for a, b in zip(part[3], t, strict=True)) / 2) for t in part]
        for token, product in enumerate(products):
            assert float(found[head, token]) == pytest.approx(product / sum(products), abs=1e-5)


def test_layers_keep_their_order_and_sides() -> None:
    model = make(tiny(depth=3)).eval()
    images = images_for(model.config)
    every = attention_maps(model, images)
    some = attention_maps(model, images, layers=[-1, 0, 2])
    assert some.layers == (2, 0)
    assert some.weights.equal(every.weights[:, [2, 0]])
    classifier = CrateClassifier.from_pretrained(model, num_classes=2)
    assert attention_maps(classifier, images).weights.equal(every.weights)


def test_finer_maps() -> None:
    model = make(tiny()).eval()
    images = images_for(model.config)
    fine = attention_maps(model, images, stride=2, query=(2, 4), side="decoder")
    assert fine.patches.shape == (2, 2, 2, 3, 5)
    assert gap(fine.weights.sum(-1), torch.ones(2, 2, 2)) < 1e-5
    assert fine.others[..., 2, 4].abs().max() == 0
    assert gap(fine.others.sum((-2, -1)) + fine.own + fine.weights[..., 0], torch.ones(2, 2, 2)) < (
        1e-5
    )
    large = torch.randn(1, 3, 16, 24)
    assert attention_maps(model, large).patches.shape[-2:] == (4, 6)
    whole = model.attention(large, [1])[1]
    assert gap(attention_maps(model, large, layers=[1]).weights[:, 0], whole[:, :, 0]) < 1e-6


def test_mask_tokens_in_the_decoder_get_dense_positions() -> None:
    """With a stride of a whole patch both ways of making positions must agree."""
    model = make(tiny(mask_tokens="decoder")).eval()
    images = images_for(model.config)
    own = attention_maps(model, images, side="decoder", stride=4)
    with torch.no_grad():
        whole = model.attention(images, [0, 1], "decoder")
    assert gap(own.weights[:, 1], whole[1][:, :, 0]) < 1e-6
    assert attention_maps(model, images, side="decoder", stride=1).patches.shape[-2:] == (5, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, "encoder layer 2 does not exist; there are 0 to 1"),
        ({"layers": []}, "no layer"),
        ({"layers": [-3], "side": "decoder"}, "decoder layer -3"),
        ({"side": "middle"}, "side must be"),
        ({"query": (2, 0)}, r"patch \(2, 0\) is outside the grid: rows are 0 to 1, columns 0 to 2"),
        ({"query": (0, -1)}, "outside the grid"),
        ({"query": "cls"}, "'class' or"),
        ({"stride": 9}, "stride 9x9"),
    ],
)
def test_what_a_model_does_not_have(options: dict[str, object], message: str) -> None:
    model = make(tiny())
    with pytest.raises(ValueError, match=message):
        attention_maps(model, images_for(model.config), **options)  # type: ignore[arg-type]


def test_limits() -> None:
    model = make(tiny())
    with pytest.raises(ValueError, match="more than 2 GiB"):
        attention_maps(model, torch.zeros(1, 3, 8, 12).expand(1, 3, 8, 12).repeat(1, 1, 64, 64))
    classifier = CrateClassifier.from_pretrained(model, num_classes=2)
    with pytest.raises(ValueError, match="no decoder"):
        attention_maps(classifier, images_for(model.config), side="decoder")
    assert head_numbers(None, 3) == [0, 1, 2]
    assert head_numbers([-1, 0, 2], 3) == [2, 0]
    for wrong in ([3], [], [0, -4]):
        with pytest.raises(ValueError, match="there are 0 to 2"):
            head_numbers(wrong, 3)
    assert query_index((1, 2), (2, 3)) == 6


# --- attention without attention maps ---------------------------------------------------------


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_token_statistics_show_their_memberships(side: Side) -> None:
    model = make(FAMILY["tost"]).eval()
    images = images_for(model.config)
    found = attention_maps(model, images, side=side)
    heads = found.weights.shape[2]
    assert found.kind == "membership"
    assert gap(found.weights.sum(dim=2), torch.ones(2, 2, 7)) < 1e-5
    with torch.no_grad():
        whole = model.membership(images, [0, 1], side)
    for layer in (0, 1):
        assert whole[layer].shape == (2, heads, 7)
        assert gap(found.weights[:, layer], whole[layer]) < 1e-6
    assert found.words().startswith(f"membership of tokens in heads, {side}")
    with pytest.raises(ValueError, match="Leave the query out"):
        attention_maps(model, images, query=(0, 1), side=side)
    with pytest.raises(ValueError, match="no N x N attention maps"):
        model.attention(images, side=side)


def test_a_gradient_has_no_maps_and_attention_no_memberships() -> None:
    model = make(FAMILY["exact"]).eval()
    with pytest.raises(ValueError, match="entries have either sign"):
        attention_maps(model, images_for(model.config))
    with pytest.raises(ValueError, match="no memberships of tokens in heads"):
        make(tiny()).membership(images_for(tiny()))
