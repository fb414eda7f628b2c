"""The masked autoencoder as its users call it."""

import dataclasses
import math
import re
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from model_cases import VARIANTS, gap, images_for, make, mask_for, some, tiny
from torch import Tensor

from crate_mae.common.randomness import keyed_generator
from crate_mae.models.autoencoder import CrateMAE, MaskedOutput, build_model
from crate_mae.models.config import PRESETS, ModelConfig, Preprocess
from crate_mae.models.loss import masked_mse
from crate_mae.models.masks import draw_mask, place_visible, take_visible
from crate_mae.models.patches import patchify


@given(
    grid=st.tuples(st.integers(1, 4), st.integers(2, 4)),
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 6),
    batch=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    where=st.sampled_from(["encoder", "decoder"]),
    projection=st.sampled_from(["free", "tied"]),
)
@some
def test_shapes_on_any_size_and_channels(
    grid: tuple[int, int],
    patch: tuple[int, int],
    channels: int,
    batch: int,
    heads: int,
    where: Any,
    projection: Any,
) -> None:
    config = ModelConfig(
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        patch_size=patch,
        channels=channels,
        dim=8,
        depth=1,
        num_heads=heads,
        decoder_depth=1,
        decoder_num_heads=2,
        mask_tokens=where,
        output_projection=projection,
    )
    model, num_patches = CrateMAE(config), grid[0] * grid[1]
    images = torch.randn(batch, channels, *config.image_hw)
    out = model(images, mask_ratio=0.5)
    assert isinstance(out, MaskedOutput)
    assert out.loss.shape == ()
    assert out.prediction.shape == (batch, num_patches, patch[0] * patch[1] * channels)
    assert out.mask.shape == (batch, num_patches)
    assert out.mask.dtype == torch.bool
    assert (~out.mask).sum(dim=1).tolist() == [num_patches // 2] * batch
    assert model.encode(images).shape == (batch, 1 + num_patches, 8)
    assert model.attention(images)[0].shape == (batch, heads, 1 + num_patches, 1 + num_patches)


# --- every field of the configuration does something ------------------------------------------

OTHER_VALUES: dict[str, Any] = {
    "image_size": (16, 24),
    "patch_size": (2, 4),
    "channels": 1,
    "dim": 24,
    "depth": 1,
    "num_heads": 2,
    "decoder_depth": 1,
    "decoder_num_heads": 3,
    "step_size": 0.2,
    "sparsity": 0.1,
    "overcomplete": 2,
    "output_projection": "tied",
    "mask_tokens": "decoder",
    "norm_pix_loss": True,
    "attention": "tssa",
    "attention_skip": "normalised",
    "compression_step": 0.5,
    "eps_squared": 0.1,
    "subspace_bias": True,
    "sparse_step": "decoupled",
    "embedding": "norm-linear-norm",
    "positions": "learned",
    "layer_norm_eps": 0.1,
    "final_norm_eps": 0.1,
    "initial_values": "crate",
    "head_norm": "pooled",
    "orthonormal_subspaces": True,
    "bounded_steps": True,
    "mirrored_decoder": True,
}
BESIDE: dict[str, dict[str, Any]] = {
    "eps_squared": {"attention": "exact", "output_projection": "tied"},
    "subspace_bias": {"attention": "tssa"},
    "bounded_steps": {
        "orthonormal_subspaces": True,
        "output_projection": "tied",
        "compression_step": 0.5,
    },
    "mirrored_decoder": {"decoder_num_heads": 3},
}
"""What a field needs beside it to have an effect."""
ELSEWHERE = {
    "initial_values": "test_initial_values.py",
    "head_norm": "test_classifier.py",
    "orthonormal_subspaces": "test_constraints.py",
    "bounded_steps": "test_constraints.py",
}
"""Fields without an effect on a trained autoencoder, and where theirs is tested."""


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
def test_every_field_has_an_effect(field: str) -> None:
    assert set(OTHER_VALUES) == {f.name for f in dataclasses.fields(ModelConfig)}
    beside = BESIDE.get(field, {})
    model, other = make(tiny(**beside)), make(tiny(**beside, **{field: OTHER_VALUES[field]}))
    if field == "channels":
        assert other.encode(torch.randn(1, 1, 8, 12)).shape == (1, 7, 12)
        with pytest.raises(ValueError, match="images must be"):
            other.encode(torch.randn(1, 3, 8, 12))
        return
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    if shapes == {k: v.shape for k, v in other.state_dict().items()}:
        other.load_state_dict(model.state_dict())  # so that only the field differs
    images = images_for(tiny())
    if field == "patch_size":
        assert other.encode(images).shape[1] == 1 + 12
        return
    before, after = model(images, mask_for(tiny())), other(images, mask_for(tiny()))
    if field in ELSEWHERE:
        assert torch.equal(after.loss, before.loss)
        return
    assert gap(after.loss, before.loss) > 1e-5
    encoder_fields = {"image_size", "dim", "depth", "num_heads", "step_size", "sparsity"}
    if field in encoder_fields | {"output_projection"}:
        assert gap(other.encode(images), model.encode(images)) > 1e-4
    if field == "norm_pix_loss":
        assert torch.equal(after.prediction, before.prediction)


def test_other_values_differ_from_the_small_configuration() -> None:
    for field, value in OTHER_VALUES.items():
        assert getattr(tiny(), field) != value


# --- features ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_features_are_deterministic(name: str, training: bool) -> None:
    config = VARIANTS[name]
    model, images = make(config).train(training), images_for(config)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = model.encode(images)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(12345)
        assert torch.equal(model.encode(images), first)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_of_an_image_do_not_depend_on_its_batch(name: str) -> None:
    config = VARIANTS[name]
    model, images = make(config).double().eval(), images_for(config, batch=5).double()
    with torch.no_grad():
        together = model.encode(images)
        for index in range(5):
            assert gap(model.encode(images[index : index + 1])[0], together[index]) <= 1e-12
        assert gap(model.encode(images.flip(0)).flip(0), together) <= 1e-12


def test_features_keep_raster_order() -> None:
    """Without positions the encoder permutes with its patches; with them, token i is patch i."""
    config = tiny(image_size=(8, 18), patch_size=(4, 6))
    model = make(config).double().eval()
    model.encoder.positions.zero_()
    images = images_for(config).double()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = torch.empty_like(images)
    for place, source in enumerate(order.tolist()):
        (row, column), (from_row, from_column) = divmod(place, 3), divmod(source, 3)
        shuffled[:, :, row * 4 : row * 4 + 4, column * 6 : column * 6 + 6] = images[
            :, :, from_row * 4 : from_row * 4 + 4, from_column * 6 : from_column * 6 + 6
        ]
    with torch.no_grad():
        plain, permuted = model.encode(images), model.encode(shuffled)
    assert gap(permuted[:, 1:], plain[:, 1:][:, order]) <= 1e-10
    assert gap(permuted[:, 0], plain[:, 0]) <= 1e-10
    assert gap(permuted[:, 1:], plain[:, 1:]) > 0.01


def test_token_of_a_patch_depends_on_that_patch_before_the_first_layer() -> None:
    config = tiny()
    model, images = make(config), images_for(config, batch=1)
    changed = images.clone()
    changed[:, :, 4:8, 8:12] += 1  # row 1, column 2: patch 5
    difference = (model.encoder.embed(changed) - model.encoder.embed(images)).abs().amax(dim=2)
    assert (difference[0] > 0).nonzero().flatten().tolist() == [1 + 5]


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_removed_pixels_cannot_be_seen(where: Any) -> None:
    config = tiny(mask_tokens=where)
    model, images, mask = make(config).eval(), images_for(config), mask_for(config)
    removed = mask.view(2, 1, 2, 3).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    with torch.no_grad():
        out = model(images, mask)
        behind = model(torch.where(removed, images + 100, images), mask)
        assert gap(behind.prediction, out.prediction) <= 1e-5
        assert float(behind.loss) > 100 * float(out.loss)
        before = model(torch.where(removed, images, images + 1), mask)
        assert gap(before.prediction, out.prediction) > 0.01


# --- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 6), "the mask must be boolean (2, 6) (True = removed), not torch.float32"),
        (torch.ones(2, 6, dtype=torch.long), "not torch.int64 (2, 6)"),
        (torch.ones(2, 5, dtype=torch.bool), "not torch.bool (2, 5)"),
        (torch.ones(1, 6, dtype=torch.bool), "not torch.bool (1, 6)"),
        (torch.ones(6, dtype=torch.bool), "not torch.bool (6,)"),
        (torch.ones(2, 2, 3, dtype=torch.bool), "not torch.bool (2, 2, 3)"),
        (torch.zeros(2, 6, dtype=torch.bool), "the mask removes no patch"),
    ],
    ids=["float", "integer", "patches", "batch", "one dimension", "grid", "nothing"],
)
def test_masks_that_do_not_fit_are_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(tiny())(images_for(tiny()), mask)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, 2.0, 0.95, math.nan])
def test_mask_ratios_that_do_not_fit_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"mask ratio .* of 6; use one from"):
        make(tiny())(images_for(tiny()), mask_ratio=ratio)


def test_masks_come_from_the_given_generator() -> None:
    model, images = make(tiny()), images_for(tiny())
    torch.manual_seed(0)
    first = model(images, generator=keyed_generator(4), mask_ratio=0.5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = model(images, generator=keyed_generator(4), mask_ratio=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.prediction, second.prediction)
    assert torch.equal(first.loss, second.loss)
    expected = draw_mask("random", (2, 3), 0.5, keyed_generator(4), batch=2)
    assert torch.equal(first.mask, expected)
    other = [model(images, generator=keyed_generator(i), mask_ratio=0.5).mask for i in range(5, 9)]
    assert not all(torch.equal(first.mask, mask) for mask in other)


def test_default_mask_ratio_is_three_quarters() -> None:
    config = tiny(image_size=(16, 16))
    assert make(config)(images_for(config)).mask.sum(dim=1).tolist() == [12, 12]


def test_ragged_masks_work_with_mask_tokens_in_the_encoder() -> None:
    model, images = make(tiny()).double(), images_for(tiny()).double()
    mask = mask_for(tiny())
    mask[0] = torch.tensor([True, False, False, False, False, False])
    mask[1] = True
    out = model(images, mask)
    errors = ((out.prediction - model.target(images)) ** 2).mean(dim=2)
    assert gap(out.loss, (errors[0, 0] + errors[1].sum()) / 7) <= 1e-12


def test_ragged_masks_are_refused_in_visible_only_encoding() -> None:
    config = tiny(mask_tokens="decoder")
    mask = mask_for(config)
    mask[0] = torch.tensor([True, False, False, False, False, False])
    with pytest.raises(ValueError, match=r"same number of kept patches .* not \[3, 5\]"):
        make(config)(images_for(config), mask)


def test_visible_only_encoding_needs_a_visible_patch() -> None:
    config = tiny(mask_tokens="decoder")
    with pytest.raises(ValueError, match=r"at least one, not \[0\]"):
        make(config)(images_for(config), torch.ones(2, 6, dtype=torch.bool))


def test_given_mask_is_not_changed() -> None:
    for config in (tiny(), tiny(mask_tokens="decoder")):
        mask = mask_for(config)
        images = images_for(config)
        kept = mask.clone(), images.clone()
        make(config)(images, mask)
        assert torch.equal(mask, kept[0])
        assert torch.equal(images, kept[1])


@given(
    batch=st.integers(1, 3), length=st.integers(2, 9), data=st.data(), seed=st.integers(0, 10**6)
)
@some
def test_visible_tokens_return_to_their_places(
    batch: int, length: int, data: st.DataObject, seed: int
) -> None:
    removed = data.draw(st.integers(0, length - 1))
    torch.manual_seed(seed)
    tokens, filler = torch.randn(batch, length, 4), torch.randn(1, 1, 4)
    mask = torch.zeros(batch, length, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(length)[:removed]] = True
    visible = take_visible(tokens, mask)
    assert visible.shape == (batch, length - removed, 4)
    placed = place_visible(visible, mask, filler)
    for b in range(batch):
        kept = [i for i in range(length) if not mask[b, i]]
        for slot, i in enumerate(kept):
            assert torch.equal(visible[b, slot], tokens[b, i])
            assert torch.equal(placed[b, i], tokens[b, i])
        for i in range(length):
            if mask[b, i]:
                assert torch.equal(placed[b, i], filler[0, 0])


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_masked_tokens_and_decoder_input_equal_a_loop(where: Any) -> None:
    """Which tokens, in which order, with which positions: spelled out for both designs."""
    config = tiny(mask_tokens=where)
    model, images, mask = make(config).double(), images_for(config).double(), mask_for(config)
    encoder = model.encoder
    found, patches = model.embed_masked(images, mask), encoder.patch_tokens(images)
    places = encoder.positions
    latent = model.encode_masked(images, mask)
    entering = model.decoder_input(latent, mask, config.grid)
    for b in range(2):
        rows = [encoder.class_token[0, 0] + places[0]]
        back, slot = [latent[b, 0] + places[0]], 1
        for i in range(6):
            if where == "encoder":
                rows.append(
                    (model.mask_token[0, 0] if mask[b, i] else patches[b, i]) + places[1 + i]
                )
            elif mask[b, i]:
                back.append(model.mask_token[0, 0] + places[1 + i])
            else:
                rows.append(patches[b, i] + places[1 + i])
                back.append(latent[b, slot] + places[1 + i])
                slot += 1
        assert gap(found[b], torch.stack(rows)) <= 1e-12
        assert gap(entering[b], latent[b] if where == "encoder" else torch.stack(back)) <= 1e-12


# --- loss -------------------------------------------------------------------------------------


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 5),
    width=st.integers(1, 4),
    seed=st.integers(0, 999),
)
@some
def test_masked_error_counts_removed_patches_only(
    batch: int, length: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    prediction, target = torch.randn(2, batch, length, width, dtype=torch.float64)
    mask = torch.rand(batch, length) < 0.6
    mask[0, 0] = True
    errors = []
    for b in range(batch):
        for i in range(length):
            if mask[b, i]:
                squares = [float(prediction[b, i, j] - target[b, i, j]) ** 2 for j in range(width)]
                errors.append(sum(squares) / width)
    expected = sum(errors) / len(errors)
    assert float(masked_mse(prediction, target, mask)) == pytest.approx(expected, rel=1e-10)


def test_normalised_target_has_mean_zero_and_unit_variance() -> None:
    config = tiny(norm_pix_loss=True)
    images = 5 + 3 * images_for(config)
    target = make(config).target(images)
    assert gap(target.mean(dim=2), torch.zeros(2, 6)) <= 1e-5
    assert gap(target.var(dim=2, correction=1), torch.ones(2, 6)) <= 1e-4
    flat = make(config).target(torch.full((1, 3, 8, 12), 0.7))
    assert float(flat.abs().max()) < 1e-3  # a patch of one colour gives no infinite target
    plain = make(tiny()).target(images)
    assert torch.equal(plain, patchify(images, (4, 4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_narrow_numbers_is_float32(dtype: torch.dtype) -> None:
    prediction, target = torch.full((1, 4, 3), 300.0), torch.zeros(1, 4, 3)
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss = masked_mse(prediction.to(dtype), target.to(dtype), mask)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(90_000, rel=0.01)  # above the largest float16


@pytest.mark.parametrize("name", VARIANTS)
def test_autocast_loss_is_float32_and_near(name: str) -> None:
    config = VARIANTS[name]
    model, images, mask = make(config, scale=0.05), images_for(config), mask_for(config)
    plain = model(images, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model(images, mask)
    assert narrow.loss.dtype == torch.float32
    assert narrow.prediction.dtype == torch.bfloat16
    assert narrow.loss.item() == pytest.approx(plain.loss.item(), rel=0.02)
    assert gap(narrow.prediction, plain.prediction) < 0.15
    narrow.loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("name", ["published", "visible only", "tied", "normalised target"])
def test_a_tiny_model_learns_one_batch_by_heart(name: str) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(VARIANTS[name], dim=48, num_heads=4, decoder_num_heads=4)
    model, images, mask = CrateMAE(config), images_for(config), mask_for(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = float(model(images, mask).loss.detach())
    for _ in range(150):
        optimiser.zero_grad()
        loss = model(images, mask).loss
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < first / 10


# --- images that do not fit -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 8, 12), "images must be (B, 3, H, W) for this model, not (2, 1, 8, 12)"),
        ((3, 8, 12), "images must be (B, 3, H, W) for this model, not (3, 8, 12)"),
        ((2, 8, 12, 3), "images must be (B, 3, H, W)"),
        ((2, 3, 9, 12), "image 9x12 is not a multiple of patch 4x4, nearest size 8x12: resize"),
        ((2, 3, 8, 15), "image 8x15 is not a multiple of patch 4x4, nearest size 8x16"),
        ((2, 3, 3, 12), "image 3x12 is smaller than patch 4x4, nearest size 4x12"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    model, images = make(tiny()), torch.zeros(shape)
    for call in (model, model.encode, model.attention):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(images)


# --- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_attention_rows_are_distributions(name: str, side: Any) -> None:
    config = VARIANTS[name]
    model, images = make(config).eval(), images_for(config)
    depth = config.depth if side == "encoder" else config.decoder_depth
    heads = config.num_heads if side == "encoder" else config.decoder_num_heads
    maps = model.attention(images, layers=range(depth), side=side)
    assert list(maps) == list(range(depth))
    for weights in maps.values():
        assert weights.shape == (2, heads, 1 + config.num_patches, 1 + config.num_patches)
        assert bool((weights >= 0).all())
        assert gap(weights.sum(dim=-1), torch.ones(weights.shape[:-1])) <= 1e-5


def test_attention_layers_may_be_counted_from_the_end() -> None:
    config = tiny(depth=4, decoder_depth=3)
    model, images = make(config).eval(), images_for(config)
    everything = model.attention(images, layers=range(4))
    assert list(model.attention(images)) == [3]
    assert list(model.attention(images, layers=2)) == [2]
    assert list(model.attention(images, layers=[-1, 0, -3, 0])) == [0, 1, 3]
    for asked, index in ((-1, 3), (-4, 0), (1, 1)):
        found = model.attention(images, layers=[asked])
        assert list(found) == [index]
        assert torch.equal(found[index], everything[index])
    assert list(model.attention(images, layers=(-1, -2), side="decoder")) == [1, 2]
    assert gap(everything[0], everything[1]) > 1e-3


@pytest.mark.parametrize(
    ("layers", "side", "message"),
    [
        ([2], "encoder", "encoder layers [2] do not exist; there are 0 to 1"),
        ([0, -3, 5], "encoder", "encoder layers [-3, 5] do not exist"),
        ([1], "decoder", "decoder layers [1] do not exist; there are 0 to 0"),
        ([], "encoder", "encoder layers [] do not exist"),
        ([0], "both", "side must be 'encoder' or 'decoder', not 'both'"),
    ],
)
def test_attention_of_missing_layers_is_refused(layers: list[int], side: Any, message: str) -> None:
    model = make(tiny(decoder_depth=1))
    with pytest.raises(ValueError, match=re.escape(message)):
        model.attention(images_for(tiny()), layers=layers, side=side)


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_agrees_with_the_fused_path(name: str) -> None:
    """The maps, applied to the tokens, give what the layer's own attention adds."""
    config = VARIANTS[name]
    model, images = make(config).double().eval(), images_for(config).double()
    with torch.no_grad():
        tokens = model.encoder.embed(images)
        maps = model.attention(images, layers=range(config.depth))
        for index, layer in enumerate(model.encoder.layers):
            w = layer.mssa.project(layer.norm1(tokens))
            mixed = (maps[index] @ w).transpose(1, 2).flatten(2)
            if layer.mssa.tied:
                mixed = mixed @ layer.mssa.subspaces.weight
            elif layer.mssa.output is not None:
                mixed = layer.mssa.output(mixed)
            assert gap(layer.compress(tokens), tokens + mixed) <= 1e-10
            tokens = layer(tokens)


def test_attention_computes_the_asked_layers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(depth=4)
    model, images = make(config), images_for(config)
    called: list[int] = []
    for index, layer in enumerate(model.encoder.layers):
        explicit = layer.mssa.attention

        def counted(x: Tensor, index: int = index, explicit: Any = explicit) -> Any:
            called.append(index)
            return explicit(x)

        monkeypatch.setattr(layer.mssa, "attention", counted)
    model.attention(images, layers=[1])
    assert called == [1]
    model(images)
    model.encode(images)
    assert called == [1]


# --- building ---------------------------------------------------------------------------------


def test_build_by_preset_with_overrides() -> None:
    model = build_model("debug", channels=1, depth=1, norm_pix_loss=True)
    expected = dataclasses.replace(PRESETS["debug"], channels=1, depth=1, norm_pix_loss=True)
    assert model.config == expected
    assert len(model.encoder.layers) == 1
    assert model.preprocess == Preprocess.identity(expected)
    assert model(torch.randn(2, 1, 32, 32)).prediction.shape == (2, 16, 64)


def test_build_by_configuration() -> None:
    assert build_model(tiny(), dim=24).config == tiny(dim=24)
    torch.manual_seed(3)
    first = build_model(tiny())
    torch.manual_seed(3)
    second = CrateMAE(tiny())
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_build_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'debugg' .did you mean 'debug'"):
        build_model("debugg")
    with pytest.raises(ValueError, match="unknown ModelConfig field 'patchsize'"):
        build_model("debug", patchsize=4)
    with pytest.raises(ValueError, match="not a multiple of patch"):
        build_model("debug", patch_size=7)


def test_public_names_are_the_models_own() -> None:
    import crate_mae

    assert crate_mae.CrateMAE is CrateMAE
    assert crate_mae.build_model is build_model
    with pytest.raises(AttributeError, match="No crate_mae attribute CrateMAEE"):
        getattr(crate_mae, "CrateMAEE")  # noqa: B009


@pytest.mark.parametrize("mask_tokens", ["encoder", "decoder"])
def test_recomputed_layers_give_the_same_numbers_from_less_memory(mask_tokens: str) -> None:
    model = build_model("tiny", image_size=32, patch_size=8, depth=3, mask_tokens=mask_tokens)
    images, mask = torch.rand(2, 3, 32, 32), draw_mask("random", (4, 4), 0.5, None, batch=2)

    def gradients() -> tuple[float, list[torch.Tensor], int]:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()) or tensor,  # type: ignore[func-returns-value]
            lambda tensor: tensor,
        ):
            loss = model(images, mask).loss
        found = torch.autograd.grad(loss, list(model.parameters()))
        return float(loss.detach()), list(found), sum(kept)

    plain_loss, plain, plain_kept = gradients()
    model.recompute_layers()
    loss, again, kept = gradients()
    assert loss == plain_loss
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert kept < plain_kept / 3
    with torch.no_grad():
        assert float(model(images, mask).loss) == plain_loss


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 7])
def test_features_of_a_large_batch_are_made_in_parts(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("tiny", image_size=16, patch_size=8, dim=48, depth=2)
    model.double().eval()
    images = torch.rand(7, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([model.encode(image[None]) for image in images])
    seen: list[int] = []
    plain = model.encoder.run_layers

    def noted(tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        seen.append(len(tokens))
        return plain(tokens, keep)

    monkeypatch.setattr(model.encoder, "run_layers", noted)
    monkeypatch.setattr("crate_mae.models.encoder.CACHED_VALUES", at_a_time * 5 * 48)
    with torch.inference_mode():
        found = model.encode(images)
    assert max(seen) == at_a_time
    assert sum(seen) == 7
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)
    seen.clear()
    torch.autograd.backward(model.encode(images).sum())  # its graph is not cut into parts
    assert seen == [7]
