"""ViT-MAE behind our interface: the same numbers as transformers', in raster order, and frozen."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crate_mae.common.files import file_hash
from crate_mae.evaluation.backbones import (
    checked_layers,
    load_backbone,
    random_baseline,
)
from crate_mae.models.autoencoder import build_model
from crate_mae.models.config import IMAGENET_MEAN, ModelConfig, Preprocess
from crate_mae.models.cost import parameter_count
from crate_mae.models.patches import sincos_positions
from crate_mae.vitmae.model import (
    Match,
    ViTMAE,
    build_vitmae,
    position_tables,
    vitmae_baseline,
    vitmae_config,
)
from crate_mae.vitmae.vitmae_folder import save_vitmae
from crate_mae.weights.tensors import IncompleteWeightsError
from crate_mae.weights.weights_folder import save_model

CONFIG = ModelConfig(
    image_size=16,
    patch_size=4,
    channels=2,
    dim=24,
    depth=3,
    num_heads=4,
    decoder_depth=1,
    decoder_num_heads=2,
    norm_pix_loss=True,
)
PREPROCESS = Preprocess(size=(16, 16), channels=2, mean=(0.1, 0.2), std=(0.3, 0.4))


def loaded_vitmae(name: Path) -> ViTMAE:
    """The ViT-MAE of a weights or run folder."""
    model, _ = load_backbone(name)
    assert isinstance(model, ViTMAE)
    return model


@pytest.fixture(scope="module")
def twin() -> ViTMAE:
    return build_vitmae(vitmae_config(CONFIG), preprocess=PREPROCESS, seed=1)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    split = [t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v)]
    weights = (split[0] @ split[1].mT / math.sqrt(split[0].shape[-1])).softmax(dim=-1)
    mixed: Tensor = weights @ split[2]
    return mixed.transpose(1, 2).flatten(2)


def by_definition(model: Any, images: Tensor) -> list[Tensor]:
    """Tokens before and after each layer and after the norm, from the parts, in float64."""
    model = model.double()
    vit, heads = model.vit, model.config.num_attention_heads
    table = sincos_positions(24, (4, 4)).double()
    filters = vit.embeddings.patch_embeddings.projection
    patches = images.double().unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
    flat = patches.reshape(len(images), 16, -1) @ filters.weight.flatten(1).T + filters.bias
    cls_token = vit.embeddings.cls_token.expand(len(images), -1, -1)
    tokens = torch.cat([cls_token, flat], dim=1) + table
    states = [tokens]
    for layer in vit.layers:
        a, x = layer.attention, layer.layernorm_before(tokens)
        tokens = tokens + a.o_proj(attention(a.q_proj(x), a.k_proj(x), a.v_proj(x), heads))
        x = layer.layernorm_after(tokens)
        tokens = tokens + layer.mlp.fc2(nn.functional.gelu(layer.mlp.fc1(x)))
        states.append(tokens)
    return [*states, vit.layernorm(tokens)]


@torch.no_grad()
def test_layers_are_those_of_the_definition(twin: ViTMAE, images: Tensor) -> None:
    found = twin.layer_tokens(images, [0, 1, 2, 3, None])
    copy = build_vitmae(vitmae_config(CONFIG), preprocess=PREPROCESS, seed=1).model
    expected = by_definition(copy, images)
    for layer, truth in zip((0, 1, 2, 3, None), expected, strict=True):
        torch.testing.assert_close(found[layer].double(), truth, atol=1e-5, rtol=1e-5)
    assert torch.equal(twin.encode(images), found[None])


@torch.no_grad()
def test_encoding_is_what_transformers_computes_once_put_in_order(
    twin: ViTMAE, images: Tensor
) -> None:
    config = twin.model.config
    assert config.mask_ratio == 0.75
    config.mask_ratio = 0.0
    torch.manual_seed(3)
    output = twin.model.vit(images)
    config.mask_ratio = 0.75
    assert not torch.equal(output.ids_restore[0], torch.arange(16)), "it shuffles"
    index = output.ids_restore[..., None].expand(-1, -1, 24)
    ordered = output.last_hidden_state[:, 1:].gather(1, index)
    torch.testing.assert_close(twin.encode(images)[:, 1:], ordered, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_are_in_raster_order(twin: ViTMAE, images: Tensor) -> None:
    before = twin.layer_tokens(images, [0, None])
    for patch in range(16):
        row, column = divmod(patch, 4)
        changed = images.clone()
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        after = twin.layer_tokens(changed, [0, None])
        moved = (after[0] - before[0]).norm(dim=-1)
        assert (moved > 1e-3).nonzero()[:, 1].tolist() == [1 + patch] * 3
        assert ((after[None] - before[None]).norm(dim=-1)[:, 1:].argmax(dim=1) == patch).all()


@torch.no_grad()
def test_encoding_is_deterministic_and_leaves_no_trace(twin: ViTMAE, images: Tensor) -> None:
    state = torch.get_rng_state()
    assert torch.equal(twin.encode(images), twin.encode(images))
    assert torch.equal(state, torch.get_rng_state())
    assert twin.model.config.mask_ratio == 0.75
    with pytest.raises(ValueError, match=r"must be \(B, 2, 16, 16\) for this ViT-MAE"):
        twin.encode(images[:, :1])
    alone = torch.cat([twin.encode(image[None]) for image in images])
    torch.testing.assert_close(twin.encode(images), alone, atol=1e-5, rtol=1e-5)


def test_a_twin_starts_as_mae_does(twin: ViTMAE) -> None:
    embeddings, decoder = twin.model.vit.embeddings, twin.model.decoder
    for table, width in zip(position_tables(twin.model), (24, 24), strict=True):
        assert torch.equal(table[0], sincos_positions(width, (4, 4)))
        assert not table.requires_grad
    for token in (embeddings.cls_token, decoder.mask_token):
        assert 0.005 < float(token.detach().std()) < 0.04
        assert token.requires_grad
    filters = embeddings.patch_embeddings.projection.weight
    bound = math.sqrt(6 / (24 + 2 * 16))
    assert 0.9 * bound < float(filters.detach().abs().max()) <= bound
    same = build_vitmae(vitmae_config(CONFIG), preprocess=PREPROCESS, seed=1)
    other = twin.untrained(2)
    assert torch.equal(same.model.decoder.mask_token, decoder.mask_token)
    assert not torch.equal(other.model.decoder.mask_token, decoder.mask_token)


def test_a_twin_can_be_trained_and_only_its_tables_stay(images: Tensor) -> None:
    twin = build_vitmae(vitmae_config(CONFIG), preprocess=PREPROCESS, seed=1)
    twin.train()
    twin.model(images).loss.backward()
    still = {name for name, p in twin.named_parameters() if p.grad is None}
    assert still == {
        "model.vit.embeddings.position_embeddings",
        "model.decoder.decoder_pos_embed",
    }


@pytest.mark.parametrize("match", ["configuration", "parameters"])
def test_the_sizes_of_a_twin(match: Match) -> None:
    model = build_model(CONFIG)
    twin = vitmae_baseline(model, match)
    config = twin.model.config
    assert (config.num_hidden_layers, config.decoder_num_hidden_layers) == (3, 1)
    assert (config.image_size, config.patch_size, config.num_channels) == (16, 4, 2)
    assert config.norm_pix_loss is True
    assert config.intermediate_size == 4 * config.hidden_size
    assert twin.preprocess == model.preprocess
    assert twin.config.depth == 3
    if match == "configuration":
        assert config.hidden_size == config.decoder_hidden_size == 24
        return
    target = sum(p.numel() for p in model.parameters())
    counts = {}
    for width in range(4, 40, 4):  # every width that four and two heads and 4 divide
        theirs = vitmae_config(replace(CONFIG, dim=width))
        counts[width] = parameter_count(build_vitmae(theirs, preprocess=PREPROCESS, seed=0))
    nearest = min(counts, key=lambda width: abs(counts[width] - target))
    assert config.hidden_size == nearest
    assert parameter_count(twin) == counts[nearest]


def test_a_twin_of_absurd_width_is_refused_before_memory_is_taken() -> None:
    wide = replace(CONFIG, dim=16_384, num_heads=4, decoder_num_heads=4, overcomplete=64)
    with pytest.raises(ValueError, match="wide, above the limit of 16384"):
        vitmae_config(wide, "parameters")


def test_what_transformers_cannot_build() -> None:
    with pytest.raises(ValueError, match=r"square images and patches, not images \(8, 16\)"):
        vitmae_config(replace(CONFIG, image_size=(8, 16)))
    with pytest.raises(ValueError, match="match must be"):
        vitmae_config(CONFIG, "width")  # type: ignore[arg-type]


@torch.no_grad()
def test_folders_give_the_model_back(twin: ViTMAE, images: Tensor, tmp_path: Path) -> None:
    folder = save_vitmae(twin, tmp_path / "run" / "weights")
    loaded = loaded_vitmae(tmp_path / "run")
    assert torch.equal(loaded.encode(images), twin.encode(images))
    assert loaded.preprocess == PREPROCESS
    assert not loaded.training
    assert not any(table.requires_grad for table in position_tables(loaded.model))
    assert parameter_count(loaded) == parameter_count(twin)
    model, sha256 = load_backbone(folder)
    assert isinstance(model, ViTMAE)
    assert sha256 == file_hash(folder / "model.safetensors")
    assert len(sha256) == 64
    with pytest.raises(FileExistsError, match="holds weights"):
        save_vitmae(twin, folder)
    fresh = random_baseline(loaded, 0)
    assert isinstance(fresh, ViTMAE)
    assert not torch.equal(fresh.encode(images), twin.encode(images))
    assert fresh.preprocess == PREPROCESS


def test_preprocessing_that_is_not_ours(twin: ViTMAE, tmp_path: Path) -> None:
    folder = save_vitmae(twin, tmp_path / "a")
    (folder / "preprocess.json").unlink()
    with pytest.raises(ValueError, match=r"2 channels were prepared: add preprocess\.json"):
        loaded_vitmae(folder)
    theirs = {"image_mean": [0.5, 0.6], "image_std": [0.1, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(theirs))
    assert loaded_vitmae(folder).preprocess.mean == (0.5, 0.6)
    other = replace(PREPROCESS, size=(8, 8))
    (folder / "preprocess.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(ValueError, match="the model for 2 of"):
        loaded_vitmae(folder)
    colour = replace(CONFIG, channels=3)
    plain = Preprocess(size=(16, 16))
    second = save_vitmae(
        build_vitmae(vitmae_config(colour), preprocess=plain, seed=0), tmp_path / "b"
    )
    (second / "preprocess.json").unlink()
    assert loaded_vitmae(second).preprocess.mean == IMAGENET_MEAN


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("preprocess.json", "{}", r"preprocess\.json: .*'size'"),
        (
            "preprocess.json",
            '{"size": [8, 8], "mean": "x"}',
            r"preprocess\.json: could not",
        ),
        ("preprocessor_config.json", '{"image_mean": 5}', "must be lists, not 5"),
        (
            "preprocessor_config.json",
            '{"image_mean": ["x", 1]}',
            r"config\.json: could not",
        ),
    ],
)
def test_damaged_preprocessing(
    twin: ViTMAE, tmp_path: Path, name: str, text: str, message: str
) -> None:
    folder = save_vitmae(twin, tmp_path / "a")
    (folder / "preprocess.json").unlink()
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        loaded_vitmae(folder)


def test_folders_that_are_not_whole(twin: ViTMAE, tmp_path: Path) -> None:
    folder = save_vitmae(twin, tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith("mask_token"))
    rest = {key: value for key, value in tensors.items() if key != name}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompleteWeightsError, match=r"1 missing: .*mask_token"):
        loaded_vitmae(folder)
    save_file({**tensors, "more": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IncompleteWeightsError, match="1 unexpected: more"):
        loaded_vitmae(folder)
    save_file(
        {**tensors, name: torch.ones(1, 1, 8)}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(IncompleteWeightsError, match="1 re-shaped"):
        loaded_vitmae(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"transformers cannot build .* is damaged"):
        loaded_vitmae(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled weights are not read"):
        loaded_vitmae(folder)


def test_a_model_without_positions_is_refused(tmp_path: Path) -> None:
    from transformers import ViTMAEForPreTraining

    naive = ViTMAEForPreTraining(vitmae_config(CONFIG))
    if naive.vit.embeddings.position_embeddings.any():
        pytest.skip("this version of transformers fills the table")
    folder = save_vitmae(ViTMAE(naive, PREPROCESS), tmp_path / "a")
    with pytest.raises(ValueError, match="position table is all zero"):
        loaded_vitmae(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 10**9}, "above the limit"),
        ({"num_hidden_layers": 10**9}, "above the limit"),
        ({"patch_size": 5}, "not a multiple of patch"),
        ({"intermediate_size": 10**9}, "cannot lie in a file of"),
        ({"decoder_hidden_size": 60_000}, "cannot lie in a file of"),
        ({"decoder_hidden_size": "a"}, "decoder_hidden_size 'a'"),
        ({"num_channels": "3"}, "channels must be a positive whole number"),
        ({"hidden_act": "nothing"}, r"KeyError: 'nothing'.*is damaged"),
        ({"decoder_num_attention_heads": 0}, "ZeroDivisionError.*is damaged"),
        ({"layer_norm_eps": "a"}, "layer_norm_eps.*is damaged"),
    ],
)
def test_configurations_from_strangers(
    twin: ViTMAE, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = save_vitmae(twin, tmp_path / "a")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=message):
        loaded_vitmae(folder)


def test_other_folders_are_no_vitmae(tmp_path: Path) -> None:
    ours = save_model(build_model(CONFIG), tmp_path / "ours")
    model, sha256 = load_backbone(ours)
    assert not isinstance(model, ViTMAE)
    assert len(sha256) == 64
    (tmp_path / "config.json").write_text("[" * 5)
    with pytest.raises(ValueError, match="is no JSON"):
        load_backbone(tmp_path)


def test_without_transformers_the_way_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "crate-mae\[hf\]"'):
        vitmae_config(CONFIG)


def test_layers_are_named_by_number(twin: ViTMAE) -> None:
    assert checked_layers(twin, "all") == [0, 1, 2, 3, None]
    assert checked_layers(twin, (3, None, 1, 1, -1)) == [1, 3, None]
    with pytest.raises(ValueError, match=r"layers \[4\] do not exist"):
        checked_layers(twin, (4,))


# -- masked completion ------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 4, 11])
def test_completion_removes_exactly_the_given_mask(twin: ViTMAE, kept: int) -> None:
    generator = torch.Generator().manual_seed(kept)
    images = torch.randn(3, 2, 16, 16, generator=generator)
    mask = torch.stack([torch.randperm(16, generator=generator) >= kept for _ in range(3)])
    with torch.no_grad():
        found = twin(images, mask)
        told = twin(images, mask, kept=kept)
        # What was removed cannot matter; what was kept must.
        pixels = mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        changed = twin(torch.where(pixels, images + 5, images), mask).prediction
        other = twin(torch.where(pixels, images, images + 5), mask).prediction
    assert torch.equal(found.mask, mask)
    assert torch.equal(found.prediction, told.prediction)
    assert torch.equal(found.prediction, changed)
    assert not torch.allclose(found.prediction, other, atol=1e-3)
    assert twin.model.config.mask_ratio == 0.75


@torch.no_grad()
def test_loss_is_the_one_transformers_computes(twin: ViTMAE, images: Tensor) -> None:
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    theirs = twin.model(images, noise=noise)  # keeps int(16 x 0.25) patches, the least noise first
    mask = theirs.mask.bool()
    found = twin(images, mask)
    assert float(found.loss) == pytest.approx(float(theirs.loss), rel=1e-5)
    torch.testing.assert_close(found.prediction, theirs.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_loss_is_its_definition(twin: ViTMAE, images: Tensor) -> None:
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, ::2] = True
    found = twin(images, mask)
    errors = []
    for image, removed, predicted in zip(images.double(), mask, found.prediction, strict=True):
        for place in range(16):
            if removed[place]:
                row, column = divmod(place, 4)
                patch = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                target = patch.permute(1, 2, 0).flatten()
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                errors.append((predicted[place].double() - target).square().mean())
    assert float(found.loss) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


def test_masks_that_vary_are_refused(twin: ViTMAE, images: Tensor) -> None:
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[0, 0] = mask[1, :2] = mask[2, 0] = False
    with pytest.raises(ValueError, match="same number of kept patches"):
        twin(images, mask)


def test_a_state_replaces_the_weights_that_are_saved(
    twin: ViTMAE, images: Tensor, tmp_path: Path
) -> None:
    state = {key: value + 0.25 for key, value in twin.state_dict().items()}
    save_vitmae(twin, tmp_path / "a", state=state)
    loaded = loaded_vitmae(tmp_path / "a").state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    with pytest.raises(FileExistsError):
        save_vitmae(twin, tmp_path / "a")
    save_vitmae(twin, tmp_path / "a", overwrite=True)
    again = loaded_vitmae(tmp_path / "a").encode(images)
    assert torch.equal(again, twin.encode(images))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
