"""Model configuration: what is accepted, what is refused and how it says so."""

import dataclasses
import json
import math
import re
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from model_cases import some, tiny

from crate_mae.models.config import (
    MAX_CHANNELS,
    MAX_DEPTH,
    MAX_DIM,
    MAX_SIDE,
    PRESETS,
    ModelConfig,
    Preprocess,
    nearest_multiple,
    resolve_config,
    size_fault,
)

sizes = st.integers(1, 40)


@given(
    patch=st.tuples(sizes, sizes),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 12),
    quarter=st.integers(1, 12),
    free=st.sampled_from(["free", "tied"]),
    where=st.sampled_from(["encoder", "decoder"]),
    normalised=st.booleans(),
    numbers=st.tuples(st.floats(0, 10), st.floats(0, 10)),
)
@some
def test_configuration_survives_json(
    patch: tuple[int, int],
    grid: tuple[int, int],
    channels: int,
    quarter: int,
    free: Any,
    where: Any,
    normalised: bool,
    numbers: tuple[float, float],
) -> None:
    config = ModelConfig(
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        patch_size=patch,
        channels=channels,
        dim=4 * quarter,
        depth=3,
        num_heads=quarter,
        decoder_depth=5,
        decoder_num_heads=4,
        step_size=numbers[0],
        sparsity=numbers[1],
        output_projection=free,
        mask_tokens=where,
        norm_pix_loss=normalised,
    )
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.grid == grid
    assert config.num_patches == grid[0] * grid[1]
    assert config.patch_dim == patch[0] * patch[1] * channels


def test_one_number_means_square() -> None:
    config = ModelConfig(image_size=64, patch_size=8)
    assert config.image_hw == (64, 64)
    assert config.patch_hw == (8, 8)
    assert config == ModelConfig(image_size=(64, 64), patch_size=(8, 8))


def test_defaults_are_the_published_base_model() -> None:
    config = ModelConfig()
    assert config == PRESETS["base"]
    assert (config.dim, config.depth, config.num_heads) == (768, 12, 12)
    assert (config.step_size, config.sparsity) == (0.1, 0.5)
    assert (config.output_projection, config.mask_tokens) == ("free", "encoder")
    assert config.norm_pix_loss is False


def test_configuration_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().dim = 5  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        ModelConfig(224)  # type: ignore[call-arg]
    assert len({tiny(), tiny(), tiny(dim=24)}) == 2


def test_published_sizes() -> None:
    table = {
        "tiny": (384, 6, 12),
        "small": (576, 12, 12),
        "base": (768, 12, 12),
        "large": (1024, 16, 24),
    }
    for name, (dim, heads, depth) in table.items():
        config = PRESETS[name]
        assert (config.dim, config.depth, config.decoder_depth) == (dim, depth, depth)
        assert (config.num_heads, config.decoder_num_heads) == (heads, heads)
        assert (config.image_hw, config.patch_hw) == ((224, 224), (16, 16))
    assert "debug" in PRESETS


def test_names_of_small_image_presets_say_what_they_are() -> None:
    named = {k: m for k in PRESETS if (m := re.fullmatch(r"px(\d+)-d(\d+)-l(\d+)", k))}
    assert len(named) >= 2
    families = {name for name in PRESETS if name.startswith(("crate-", "tost-", "aot-"))}
    assert set(PRESETS) - set(named) - families == {"debug", "tiny", "small", "base", "large"}
    for name, match in named.items():
        pixels, dim, depth = map(int, match.groups())
        config = PRESETS[name]
        assert config.image_hw == (pixels, pixels)
        assert config.patch_hw == (4, 4)
        assert (config.dim, config.depth, config.decoder_depth) == (dim, depth, depth)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 0}, "dim must be a positive whole number, not 0"),
        ({"dim": -4}, "dim must be a positive whole number, not -4"),
        ({"dim": 12.0}, "dim must be a positive whole number, not 12.0"),
        ({"dim": True}, "dim must be a positive whole number, not True"),
        ({"dim": "12"}, "dim must be a positive whole number, not '12'"),
        ({"dim": 10, "num_heads": 5}, "dim 10 is not a multiple of 4, nearest 12"),
        ({"dim": 10**9}, f"dim 1000000000 is above the limit of {MAX_DIM}"),
        ({"depth": 10**9}, f"depth 1000000000 is above the limit of {MAX_DEPTH}"),
        ({"depth": None}, "depth must be a positive whole number, not None"),
        ({"decoder_depth": 0}, "decoder_depth must be a positive whole number"),
        ({"decoder_depth": 10**9}, f"decoder_depth 1000000000 is above the limit of {MAX_DEPTH}"),
        ({"channels": 0}, "channels must be a positive whole number"),
        ({"channels": 10**9}, f"channels 1000000000 is above the limit of {MAX_CHANNELS}"),
        ({"num_heads": 5}, "num_heads 5 does not divide dim 12, nearest 4"),
        ({"decoder_num_heads": 9}, "decoder_num_heads 9 does not divide dim 12, nearest 6|12"),
        ({"image_size": (0, 8)}, "image height must be a positive whole number, not 0"),
        ({"image_size": (8, 10)}, "image 8x10 is not a multiple of patch 4x4, nearest size 8x12"),
        ({"image_size": 3}, "image 3x3 is smaller than patch 4x4, nearest size 4x4"),
        ({"image_size": 4 * 10**9}, f"image height 4000000000 is above the limit of {MAX_SIDE}"),
        ({"image_size": 10**400}, "is above the limit"),
        ({"image_size": "large"}, "a size is one number or .height, width., not 'large'"),
        ({"image_size": (8, 8, 3)}, "a size is one number or .height, width., not"),
        ({"image_size": None}, "a size is one number or .height, width., not None"),
        ({"patch_size": (4, 0)}, "patch width must be a positive whole number, not 0"),
        ({"patch_size": 10**18}, "patch height 1000000000000000000 is above the limit"),
        ({"image_size": 2**14, "patch_size": 2}, "patches are above the limit"),
        ({"image_size": 2**16, "patch_size": 64, "dim": 4096, "num_heads": 1}, "above the limit"),
        ({"step_size": -0.1}, "step_size must be a finite number of at least 0, not -0.1"),
        ({"step_size": math.nan}, "step_size must be a finite number of at least 0, not nan"),
        ({"step_size": 10**400}, "step_size must be a finite number"),
        ({"step_size": True}, "step_size must be a finite number"),
        ({"sparsity": math.inf}, "sparsity must be a finite number of at least 0, not inf"),
        ({"sparsity": "0.5"}, "sparsity must be a finite number of at least 0, not '0.5'"),
        ({"output_projection": "fixed"}, "must be one of free, free-no-bias, tied, not"),
        ({"attention": "mhsa"}, "attention must be one of mssa, exact, tssa, not 'mhsa'"),
        ({"sparse_step": None}, "sparse_step must be one of auto, ista, overcomplete"),
        ({"compression_step": 0}, "compression_step must be a finite number above 0, not 0"),
        ({"eps_squared": math.nan}, "eps_squared must be a finite number above 0, not nan"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be a finite number above 0, not 0.0"),
        ({"subspace_bias": True}, "subspace_bias is of attention tssa; mssa has no bias on U"),
        ({"attention": "exact"}, "set output_projection to tied, not free"),
        ({"attention": "tssa", "num_heads": 1}, "tssa needs num_heads of 2 or more"),
        ({"sparse_step": "ista", "overcomplete": 2}, "ista has as many atoms as dimensions"),
        ({"sparse_step": "none", "overcomplete": 2}, "none has no dictionary, not overcomplete 2"),
        ({"mask_tokens": ["encoder"]}, "mask_tokens must be one of encoder, decoder"),
        ({"norm_pix_loss": 1}, "norm_pix_loss must be true or false, not 1"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**values)


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ValueError, match=r"dim .*; depth .*; step_size .*; output_projection"):
        tiny(dim=0, depth=-1, step_size=-1, output_projection="none")
    with pytest.raises(ValueError, match=r"num_heads 5 .*; decoder_num_heads 7 .*; image 9x8"):
        tiny(num_heads=5, decoder_num_heads=7, image_size=(9, 8))


@given(value=st.integers(1, 400), unit=st.integers(1, 50))
@some
def test_nearest_multiple_is_nearest(value: int, unit: int) -> None:
    found = nearest_multiple(value, unit)
    multiples = range(unit, value + 2 * unit, unit)
    assert found in multiples
    assert abs(found - value) == min(abs(m - value) for m in multiples)


def test_nearest_multiple_of_large_numbers_is_exact() -> None:
    assert nearest_multiple(10**30 + 1, 10) == 10**30


@given(image=st.tuples(sizes, sizes), patch=st.tuples(sizes, sizes))
@some
def test_size_fault_names_a_size_that_works(image: tuple[int, int], patch: tuple[int, int]) -> None:
    fault = size_fault(image, patch)
    fits = all(i % p == 0 for i, p in zip(image, patch, strict=True))
    assert (fault is None) == fits
    if fault is not None:
        match = re.search(r"nearest size (\d+)x(\d+)$", fault)
        assert match is not None
        assert size_fault((int(match[1]), int(match[2])), patch) is None
        smaller = image[0] < patch[0] or image[1] < patch[1]
        assert ("is smaller than" in fault) == smaller


def test_unknown_fields_are_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"unknown ModelConfig field 'num_head' \(did you mean"):
        ModelConfig.from_dict({"num_head": 4})
    with pytest.raises(ValueError, match=r"'zzz'.*; fields: image_size, patch_size"):
        ModelConfig.from_dict({"zzz": 4})


def test_resolve_replaces_single_fields() -> None:
    config = resolve_config("debug", image_size=(16, 24), norm_pix_loss=True)
    assert config == dataclasses.replace(PRESETS["debug"], image_size=(16, 24), norm_pix_loss=True)
    assert resolve_config(tiny(), depth=7) == tiny(depth=7)
    assert resolve_config(tiny()) == tiny()


def test_resolve_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'bsae'.*did you mean 'base'.*presets:"):
        resolve_config("bsae")
    with pytest.raises(ValueError, match=r"unknown ModelConfig field 'dims' \(did you mean 'dim'"):
        resolve_config("debug", dims=4)
    with pytest.raises(ValueError, match="num_heads 5 does not divide dim 32"):
        resolve_config("debug", num_heads=5)


def test_preprocessing_survives_json() -> None:
    facts = Preprocess(size=(8, 12), channels=2, mean=(0.1, 0.2), std=(0.3, 1))
    assert Preprocess.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    assert facts.std == (0.3, 1.0)
    assert all(type(value) is float for value in facts.std)


def test_identity_preprocessing_fits_the_configuration() -> None:
    facts = Preprocess.identity(tiny(channels=5))
    assert facts.size == (8, 12)
    assert (facts.channels, facts.mean, facts.std) == (5, (0.0,) * 5, (1.0,) * 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (0.5,)}, "1 means and 3 stds for 3 channels"),
        ({"std": (1.0, 1.0)}, "3 means and 2 stds for 3 channels"),
        ({"channels": 1}, "3 means and 3 stds for 1 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "above 0"),
        ({"std": (1.0, -1.0, 1.0)}, "above 0"),
        ({"std": (1.0, math.nan, 1.0)}, "above 0"),
        ({"mean": (0.0, math.inf, 0.0)}, "means must be finite"),
        ({"size": "8"}, "a size is one number"),
        ({"size": ("8", "8")}, "whole numbers from 1 to"),
        ({"size": (8, 0)}, "whole numbers from 1 to"),
        ({"size": (8, True)}, "whole numbers from 1 to"),
        ({"size": 10**9}, "whole numbers from 1 to"),
        ({"channels": 3.0}, "whole numbers from 1 to"),
    ],
    ids=str,
)
def test_preprocessing_that_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**{"size": (8, 8), **values})


def test_unknown_preprocessing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown Preprocess field 'means' .did you mean 'mean'"):
        Preprocess.from_dict({"size": [8, 8], "means": [0.0]})


def test_learned_positions_need_no_sines_and_cosines() -> None:
    assert tiny(dim=30, num_heads=5, decoder_num_heads=3, positions="learned").dim == 30
    with pytest.raises(ValueError, match="dim 30 is not a multiple of 4"):
        tiny(dim=30, num_heads=5, decoder_num_heads=3)


def test_the_sparse_step_follows_the_atoms_unless_it_is_named() -> None:
    assert tiny().sparse_kind == "ista"
    assert tiny(overcomplete=3).sparse_kind == "overcomplete"
    assert tiny(sparse_step="overcomplete").sparse_kind == "overcomplete"
    assert dataclasses.replace(tiny(overcomplete=3), overcomplete=1).sparse_kind == "ista"
