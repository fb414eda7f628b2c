"""Dense tokens: against the encoder's own, against positions by loops, and back to pixels."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import VARIANTS, gap, images_for, make, tiny

from crate_mae.dense import layout, token_maps
from crate_mae.dense.layout import Layout, layout_of, to_pixels
from crate_mae.dense.token_maps import dense_positions, embed_dense, shown_images, token_map
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import Preprocess
from crate_mae.sources.inputs import open_images


@pytest.mark.parametrize("name", VARIANTS)
def test_without_overlap_tokens_are_the_encoders(name: str) -> None:
    model = make(VARIANTS[name]).eval()
    config = model.config
    images = images_for(config)
    rows, columns = config.grid
    with torch.no_grad():
        features = model.encode(images)[:, 1:].reshape(2, rows, columns, -1)
        states = [model.encoder.embed(images)]
        for layer in model.encoder.layers:
            states.append(layer(states[-1]))
        compressed = next(iter(model.encoder.layers)).compress(states[0])
    for stride in (None, config.patch_hw):
        found = token_map(model, images, stride=stride)
        assert found.values.equal(features)
        assert found.layer is None
    for number, state in enumerate(states):
        found = token_map(model, images, layer=number, batch_size=1)
        assert gap(found.values, state[:, 1:].reshape(2, rows, columns, -1)) < 1e-5
    inside = token_map(model, images, layer=0, kind="compressed").values
    assert inside.flatten(1, 2).equal(compressed[:, 1:])


def test_subspace_coordinates_by_loops() -> None:
    model = make(tiny()).eval()
    images = images_for(model.config)
    found = token_map(model, images, layer=-1, kind="subspace").values
    first, layer = model.encoder.layers
    with torch.no_grad():
        z = first(model.encoder.embed(images))[:, 1:]
        normed = F.layer_norm(z, (12,), layer.norm1.weight, layer.norm1.bias, 1e-5)
        U = layer.mssa.subspaces.weight
        for image in range(2):
            for token in range(6):
                for place in range(12):
                    products = [
                        float(U[place, i]) * float(normed[image, token, i]) for i in range(12)
                    ]
                    expected = sum(products)
                    row, column = divmod(token, 3)
                    assert float(found[image, row, column, place]) == pytest.approx(
                        expected, abs=1e-5
                    )


@settings(max_examples=25)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 6)),
)
def test_positions_of_overlapping_patches(grid: tuple[int, int], stride: tuple[int, int]) -> None:
    """Every entry from the pixel centre of its patch, in the trained grid's coordinates."""
    config = tiny(image_size=(8, 18), patch_size=(4, 6))
    encoder = make(config).encoder
    size = (grid[0] * 4, grid[1] * 6)
    layout = layout_of(config, size, stride)
    found = dense_positions(encoder, layout)
    assert found[0].abs().max() == 0
    tops = [top for top in range(size[0]) if top % stride[0] == 0 and top + 4 <= size[0]]
    lefts = [left for left in range(size[1]) if left % stride[1] == 0 and left + 6 <= size[1]]
    assert layout.grid == (len(tops), len(lefts))
    token = 1
    for top in tops:
        for left in lefts:
            row = (top + 2) / size[0] * 2 - 0.5
            column = (left + 3) / size[1] * 3 - 0.5
            expected = []
            for place in (column, row):
                angles = [place / 10_000 ** (i / 3) for i in range(3)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert np.allclose(found[token], expected, atol=1e-6)
            token += 1


def test_an_overlapping_patch_is_embedded_as_if_cut_out() -> None:
    model = make(tiny()).eval()
    images = images_for(model.config, batch=1)
    layout = layout_of(model.config, (8, 12), 2)
    with torch.no_grad():
        tokens = embed_dense(model.encoder, images, layout)
        plain = tokens - dense_positions(model.encoder, layout)
        filters = model.encoder.patch_embed.linear
        weight, bias = filters.weight, filters.bias
        for row in range(3):
            for column in range(5):
                cut = images[0, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
                assert bias is not None
                expected = (weight * cut).sum(dim=(1, 2, 3)) + bias
                assert gap(plain[0, 1 + row * 5 + column], expected) < 1e-5
    # Where patches fall on the model's own grid, they get its own positions.
    own, dense = model.encoder.positions[1:].view(2, 3, 12), dense_positions(model.encoder, layout)
    assert gap(dense[1:].view(3, 5, 12)[::2, ::2], own) < 1e-6
    assert token_map(model, images, stride=2).values.shape == (1, 3, 5, 12)


def test_larger_images_and_classifiers() -> None:
    model = make(tiny())
    classifier = CrateClassifier.from_pretrained(model, num_classes=3)
    images = torch.randn(2, 3, 16, 24)
    classifier.train()
    found = token_map(classifier, images)
    assert classifier.training
    with torch.no_grad():
        assert found.values.flatten(1, 2).equal(model.eval().encode(images)[:, 1:])
    assert "4x6 tokens of 16x24 pixels, patch 4x4; trained at 8x12" in found.words()
    assert "every 2x2 pixels (overlapping)" in token_map(model, images, stride=2).words()


def test_values_at_pixels_stand_at_patch_centres() -> None:
    layout = layout_of(tiny(), (8, 12))
    values = torch.rand(2, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    blocks = values.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert to_pixels(values, layout, smooth=False).equal(blocks)
    bilinear = F.interpolate(values, size=(8, 12), mode="bilinear", align_corners=False)
    assert gap(to_pixels(values, layout, smooth=True), bilinear) < 1e-6
    overlapping = Layout(image_hw=(9, 9), patch_hw=(3, 3), stride=(2, 2), trained_hw=(9, 9))
    ramp = torch.arange(4.0).expand(4, 4)
    across = to_pixels(ramp, overlapping, smooth=True)[4]
    assert across.tolist() == pytest.approx([0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    single = Layout(image_hw=(4, 4), patch_hw=(4, 4), stride=(4, 4), trained_hw=(8, 8))
    assert to_pixels(torch.full((1, 1), 7.0), single, smooth=True).flatten().tolist() == [7.0] * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layers .3. do not exist"),
        ({"layer": 2, "kind": "subspace"}, "encoder layer 2 does not exist; there are 0 to 1"),
        ({"kind": "compressed"}, "say which"),
        ({"kind": "keys"}, "kind must be one of"),
        ({"stride": 0}, "stride 0x0 must be from 1"),
        ({"stride": 5}, "stride 5x5 must be from 1 to the patch size 4x4"),
    ],
)
def test_what_a_model_does_not_have(options: dict[str, object], message: str) -> None:
    model = make(tiny())
    with pytest.raises(ValueError, match=message):
        token_map(model, images_for(model.config), **options)  # type: ignore[arg-type]


def test_sizes_and_amounts_are_checked() -> None:
    model = make(tiny())
    with pytest.raises(ValueError, match="nearest size 8x12"):
        token_map(model, torch.zeros(1, 3, 9, 12))
    with pytest.raises(ValueError, match="tokens an image are above the limit"):
        layout_of(model.config, (4000, 4000), 1)
    with pytest.raises(ValueError, match="GiB at once"):
        token_map(model, torch.zeros(1, 3, 4, 4).expand(60_000_000, -1, -1, -1))


def test_shown_images() -> None:
    source = open_images(["digits"], split="test", limit=3)
    model = make(tiny(channels=1))
    model.preprocess = Preprocess(size=(8, 12), channels=1, mean=(0.3,), std=(0.4,))
    assert shown_images(model, source).images.shape == (3, 1, 8, 12)
    found = shown_images(model, source, size=(16, 24))
    assert found.images.shape == (3, 1, 16, 24)
    assert found.names == [source.name(i) for i in range(3)]
    assert 0 <= found.shown.min() <= found.shown.max() <= 1
    assert gap(found.shown, (found.images * 0.4 + 0.3).clamp(0, 1)) == 0
    for options in ({"size": (9, 12)}, {"stride": 5}):
        with pytest.raises(ValueError, match="size"):
            shown_images(model, source, **options)


def test_very_fine_grids_are_told_of_and_go_image_by_image(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny()
    model, images = make(config), images_for(config, batch=3)
    steps: list[int] = []
    coarse = token_map(model, images, progress=lambda done, _: steps.append(done))
    assert steps == [3]
    assert not caplog.messages
    for module in (layout, token_maps):
        monkeypatch.setattr(module, "MANY_TOKENS", 5)
    fine = token_map(model, images, progress=lambda done, _: steps.append(done))
    assert steps == [3, 1, 2, 3]
    assert "6 tokens an image" in caplog.text
    assert gap(fine.values, coarse.values) < 1e-5
