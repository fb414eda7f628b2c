"""Embeddings and learned positions: against loops, torch's interpolation, and dense tokens."""

import logging

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from model_cases import gap, images_for, make, some, tiny

from crate_mae.dense.token_maps import token_map
from crate_mae.models.embedding import NormLinearNorm, patch_embedding
from crate_mae.models.patches import patch_centres, resampled_positions


@given(
    patch=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 3),
)
@some
def test_norm_linear_norm_by_loops(
    patch: tuple[int, int], grid: tuple[int, int], channels: int
) -> None:
    torch.manual_seed(0)
    config = tiny(
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        patch_size=patch,
        channels=channels,
        embedding="norm-linear-norm",
    )
    made = patch_embedding(config).double()
    assert isinstance(made, NormLinearNorm)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    images = images_for(config).double()
    found = made.tokens(images)
    for b, image in enumerate(images):
        for index in range(grid[0] * grid[1]):
            row, column = divmod(index, grid[1])
            values = torch.stack(
                [
                    image[c, row * patch[0] + i, column * patch[1] + j]
                    for i in range(patch[0])
                    for j in range(patch[1])
                    for c in range(channels)
                ]
            )
            mean = values.mean()
            spread = ((values - mean) ** 2).mean()
            normed = (values - mean) / (spread + 1e-5).sqrt() * made.norm1.weight + made.norm1.bias
            token = made.linear.weight @ normed + made.linear.bias
            mean = token.mean()
            spread = ((token - mean) ** 2).mean()
            expected = (token - mean) / (spread + 1e-5).sqrt() * made.norm2.weight + made.norm2.bias
            assert gap(found[b, index], expected) < 1e-10


@given(
    own=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    asked=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
@some
def test_learned_positions_are_interpolated_as_torch_does(
    own: tuple[int, int], asked: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    table = torch.randn(1 + own[0] * own[1], 3, dtype=torch.float64)
    rows, columns = (patch_centres(n, k) for n, k in zip(asked, own, strict=True))
    found = resampled_positions(table, own, rows, columns)
    picture = table[1:].view(*own, 3).permute(2, 0, 1)[None]
    expected = F.interpolate(picture, size=asked, mode="bilinear", align_corners=False)
    assert gap(found[1:], expected[0].flatten(1).mT) < 1e-12
    assert torch.equal(found[0], table[0])


def test_learned_positions_take_other_images_and_learn_from_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make(tiny(positions="learned"))
    with caplog.at_level(logging.WARNING):
        out = model(torch.randn(2, 3, 12, 20), mask_ratio=0.5)
    assert "learned positions interpolated bilinearly, 2x3 -> 3x5" in caplog.text
    torch.autograd.backward(out.loss)
    gradient = model.encoder.positions.grad
    assert gradient is not None
    assert bool((gradient.abs().sum(dim=1) > 0).all())


def test_the_class_tokens_position_counts_where_only_visible_patches_are_encoded() -> None:
    model = make(tiny(positions="learned", mask_tokens="decoder"))
    images = images_for(model.config)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 0] = True
    tokens = model.embed_masked(images, mask)
    whole = model.encoder.embed(images)
    assert gap(tokens[:, 0], whole[:, 0]) < 1e-6
    assert gap(tokens[:, 1:], whole[:, 2:]) < 1e-6


@pytest.mark.parametrize("embedding", ["conv", "norm-linear-norm"])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_overlapping_patches_hold_those_that_do_not(embedding: str, positions: str) -> None:
    config = tiny(image_size=(8, 8), embedding=embedding, positions=positions)
    model = make(config).eval()
    images = images_for(config)
    fine = token_map(model, images, layer=0, stride=2).values  # 3 x 3 patches
    plain = token_map(model, images, layer=0).values  # 2 x 2
    assert gap(fine[:, ::2, ::2], plain) < 1e-5
