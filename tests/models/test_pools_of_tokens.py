"""What is kept of an image's tokens."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import gap, tiny

from crate_mae.models.pools import head_width, places_of, pool_tokens, pooled


def test_pooling_names() -> None:
    tokens = torch.randn(2, 4, 3)
    assert torch.equal(pool_tokens(tokens, "cls"), tokens[:, 0])
    assert gap(pool_tokens(tokens, "mean"), (tokens[:, 1] + tokens[:, 2] + tokens[:, 3]) / 3) < 1e-6
    assert (
        gap(
            pool_tokens(tokens, "mean-all"),
            torch.stack([tokens[:, i] for i in range(4)]).sum(dim=0) / 4,
        )
        < 1e-6
    )
    assert torch.equal(pool_tokens(tokens, "tokens"), tokens)
    with pytest.raises(ValueError, match="pool must be cls, mean, mean-all or tokens, not 'max'"):
        pool_tokens(tokens, "max")


@given(depth=st.integers(1, 30), data=st.data())
def test_places_of_the_pool_of_layers(depth: int, data: st.DataObject) -> None:
    layer = data.draw(st.sampled_from([*range(depth + 1), None]))
    places = places_of("layers", layer, depth)
    order = [*range(depth + 1), None]
    positions = [order.index(place) for place in places]
    assert places[-1] == layer
    assert positions == list(range(positions[0], positions[-1] + 1)), "no gap, in order"
    assert (0 in places) == (layer == 0)
    before = order.index(layer)  # how many places other than 0 there are up to this one
    assert len(places) == (1 if layer == 0 else min(4, before))
    for pool in ("cls", "mean", "mean-std", "tokens"):
        assert places_of(pool, layer, depth) == (layer,)


@pytest.mark.parametrize("pool", ["mean-std", "layers"])
def test_gradients_of_the_spread(pool: str) -> None:
    """Against finite differences; where all patches are alike, as zeros of codes are, it is 0."""
    torch.manual_seed(0)
    states = [torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    given_states = states if pool == "layers" else states[:1]
    assert torch.autograd.gradcheck(lambda *each: pooled(each, pool), given_states)
    alike = torch.zeros(1, 5, 3, requires_grad=True)
    row = pooled([alike], pool)
    (gradient,) = torch.autograd.grad(row.sum(), alike)
    assert torch.equal(row, torch.zeros(1, 6))
    assert gap(gradient[:, 1:], torch.full((1, 4, 3), 1 / 4)) < 1e-7, "of the mean alone"
    assert torch.equal(gradient[:, 0], torch.zeros(1, 3))


@given(
    st.sampled_from(["cls", "mean", "mean-all", "mean-std", "layers"]),
    st.integers(1, 7),
    st.integers(1, 4),
)
def test_heads_are_as_wide_as_what_they_see(pool: Any, depth: int, patches: int) -> None:
    config = tiny(depth=depth)
    tokens = torch.randn(2, 1 + patches, config.dim)
    row = pooled([tokens for _ in places_of(pool, None, depth)], pool)
    assert head_width(pool, config) == row.shape[1]
    assert head_width(pool, config, width=2 * config.dim) == 2 * row.shape[1]
