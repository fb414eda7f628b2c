"""Published checkpoints in every wrapping, and back."""

import argparse
import os
import pickle
import re
import struct
import tracemalloc
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import (
    GOLDEN_FACTS,
    VARIANTS,
    gap,
    golden,
    golden_model,
    golden_under,
    images_for,
    make,
    mask_for,
    tiny,
)
from safetensors.torch import save_file
from torch import Tensor

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRESETS,
    ModelConfig,
    Preprocess,
)
from crate_mae.weights.published import (
    PublishedFacts,
    from_reference,
    published_state,
    to_reference,
)
from crate_mae.weights.tensors import IncompleteWeightsError

State = dict[str, Tensor]


def state() -> State:
    """A fresh published state dict."""
    return {key: value.clone() for key, value in golden_under("state.").items()}


def facts_of(config: ModelConfig) -> PublishedFacts:
    """What the published form of a model does not hold."""
    return PublishedFacts(
        num_heads=config.num_heads,
        decoder_num_heads=config.decoder_num_heads,
        step_size=config.step_size,
        sparsity=config.sparsity,
        norm_pix_loss=config.norm_pix_loss,
    )


def assert_golden(model: CrateMAE) -> None:
    """The model computes the golden prediction, so every weight went to its place."""
    out = model(golden()["images"], golden()["mask"])
    assert gap(out.prediction, golden()["masked.pred"]) <= 1e-5


def prefixed(prefix: str) -> State:
    return {prefix + key: value for key, value in state().items()}


def training_file() -> dict[str, Any]:
    """What a training script pickles: weights, optimiser, numbers and its arguments."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.AdamW([parameter], lr=1e-3)
    parameter.grad = torch.ones(3)
    optimiser.step()
    return {
        "model": OrderedDict(state()),
        "optimizer": optimiser.state_dict(),
        "epoch": 799,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": argparse.Namespace(model="mae_crate_base", lr=None, betas=(0.9, 0.95), resume=""),
    }


# --- wrappings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "_orig_mod.module._orig_mod.",
    ],
)
@pytest.mark.parametrize("nested", [None, "model", "state_dict", "module"])
def test_every_wrapping_is_taken_off(prefix: str, nested: str | None) -> None:
    source: Any = prefixed(prefix)
    assert_golden(from_reference(source if nested is None else {nested: source}, GOLDEN_FACTS))


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_training_files_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"checkpoint-799.{suffix}"
    torch.save(training_file(), path)
    assert_golden(from_reference(path, GOLDEN_FACTS))
    assert_golden(from_reference(str(path), GOLDEN_FACTS))


def test_files_in_the_old_format_of_torch_are_read(tmp_path: Path) -> None:
    torch.save(training_file(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_golden(from_reference(tmp_path / "old.pth", GOLDEN_FACTS))


def test_safetensors_files_are_read(tmp_path: Path) -> None:
    save_file(prefixed("module."), tmp_path / "published.safetensors")
    assert_golden(from_reference(tmp_path / "published.safetensors", GOLDEN_FACTS))


def test_nothing_stays_allowed_in_pickles_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(training_file(), path)
    from_reference(path, GOLDEN_FACTS)
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load(path, weights_only=True)


# --- what is inferred, what is given ----------------------------------------------------------


def test_sizes_come_from_the_tensors() -> None:
    config = golden_model().config
    assert (config.image_hw, config.patch_hw, config.channels) == ((32, 32), (8, 8), 3)
    assert (config.dim, config.depth, config.decoder_depth) == (48, 2, 2)
    assert (config.num_heads, config.decoder_num_heads) == (4, 4)
    assert (config.step_size, config.sparsity, config.norm_pix_loss) == (0.1, 0.5, False)
    assert (config.output_projection, config.mask_tokens) == ("free", "encoder")


def test_what_is_not_in_the_file_is_as_given() -> None:
    model = golden_model(decoder_num_heads=8, step_size=0.2, sparsity=0.1, norm_pix_loss=True)
    config = model.config
    assert (config.num_heads, config.decoder_num_heads) == (4, 8)
    assert (config.step_size, config.sparsity, config.norm_pix_loss) == (0.2, 0.1, True)


def test_colour_images_are_prepared_as_imagenet() -> None:
    assert golden_model().preprocess == Preprocess(
        size=(32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    config = tiny(channels=1)
    loaded = from_reference(to_reference(make(config)), facts_of(config))
    assert loaded.preprocess == Preprocess.identity(config)


def test_unused_tensors_are_passed_over() -> None:
    assert {"pos_embed", "decoder_embed.weight", "decoder_embed.bias"} <= set(state())
    lean = {k: v for k, v in state().items() if not k.startswith(("pos_embed", "decoder_embed"))}
    assert len(lean) == len(state()) - 3
    first, second = from_reference(lean, GOLDEN_FACTS), golden_model()
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


@pytest.mark.parametrize(
    ("image", "patch"),
    [((8, 12), 4), ((12, 8), 4), ((8, 48), 4), ((48, 8), 4), ((9, 20), (3, 5)), ((4, 4), 4)],
)
def test_grids_that_are_not_square_are_inferred_from_the_table(image: Any, patch: Any) -> None:
    config = tiny(image_size=image, patch_size=patch)
    model = make(config)
    loaded = from_reference(to_reference(model), facts_of(config))
    assert loaded.config == config
    images = images_for(config)
    assert torch.equal(loaded.encode(images), model.encode(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_in_other_precisions_become_float32(dtype: torch.dtype) -> None:
    model = from_reference({k: v.to(dtype) for k, v in state().items()}, GOLDEN_FACTS)
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
    D = state()["blocks.0.layers.0.1.fn.weight"]
    assert torch.equal(next(iter(model.encoder.layers)).ista.dictionary, D.to(dtype).float())


def test_the_given_tensors_are_copied() -> None:
    source = state()
    model = from_reference(source, GOLDEN_FACTS)
    for value in source.values():
        value.zero_()
    assert float(model.mask_token.detach().abs().max()) > 0


# --- what is refused --------------------------------------------------------------------------


class Hostile:
    """Runs a command when it is unpickled carelessly."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_hostile_pickles_are_refused_and_not_run(new_format: bool, tmp_path: Path) -> None:
    trace, path = tmp_path / "executed", tmp_path / "checkpoint.pth"
    for source in ({**training_file(), "args": Hostile(trace)}, Hostile(trace)):
        torch.save(source, path, _use_new_zipfile_serialization=new_format)
        with pytest.raises(
            ValueError, match=r"could not be read as plain tensors.*where you trust"
        ) as caught:
            from_reference(path, GOLDEN_FACTS)
        assert re.search(r"it holds code, (os|posix|nt)\.system", str(caught.value))
        assert "weights_only" not in str(caught.value), "no advice to run it"
        assert not trace.exists()
    pickle.loads(pickle.dumps(Hostile(trace)))  # the attack does work where nothing stops it
    assert trace.exists()


def test_hostile_arguments_inside_the_allowed_class_are_refused(tmp_path: Path) -> None:
    trace, path = tmp_path / "executed", tmp_path / "checkpoint.pth"
    torch.save({**training_file(), "args": argparse.Namespace(lr=Hostile(trace))}, path)
    with pytest.raises(ValueError, match="could not be read as plain tensors"):
        from_reference(path, GOLDEN_FACTS)
    assert not trace.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(make(tiny()), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="could not be read as plain tensors"):
        from_reference(tmp_path / "model.pth", GOLDEN_FACTS)


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a checkpoint", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"checkpoint.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"checkpoint\.{suffix}"):
        from_reference(path, GOLDEN_FACTS)


def test_cut_training_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(training_file(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="could not be read as plain tensors"):
        from_reference(path, GOLDEN_FACTS)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file at .*nowhere.pth"):
        from_reference(tmp_path / "nowhere.pth", GOLDEN_FACTS)
    with pytest.raises(FileNotFoundError, match="no checkpoint file at"):
        from_reference(tmp_path, GOLDEN_FACTS)


def without(*prefixes: str) -> Callable[[State], None]:
    def change(tensors: State) -> None:
        for key in [key for key in tensors if key.startswith(prefixes)]:
            del tensors[key]

    return change


def with_tensor(key: str, value: Tensor) -> Callable[[State], None]:
    def change(tensors: State) -> None:
        tensors[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without("mask_token"), IncompleteWeightsError, "1 missing: mask_token"),
        (without("decoder_pred."), IncompleteWeightsError, "2 missing: decoder_pred.weight"),
        (
            without("blocks.1.layers.0.1.fn"),
            IncompleteWeightsError,
            r"1 missing: blocks.1.layers.0.1.fn.weight",
        ),
        (without("blocks.0."), ValueError, r"blocks are numbered \[1\], not 0 to 0"),
        (without("decoder_blocks.0."), ValueError, r"decoder_blocks are numbered \[1\]"),
        (without("blocks."), ValueError, "depth must be a positive whole number, not 0"),
        (
            without("patch_embed."),
            ValueError,
            "no CRATE-MAE checkpoint: patch_embed.proj.weight is",
        ),
        (without("decoder_pos_embed"), ValueError, "decoder_pos_embed is missing"),
        (
            with_tensor("head.weight", torch.zeros(10, 48)),
            IncompleteWeightsError,
            "1 unexpected: head.weight",
        ),
        (
            with_tensor("norm.weight", torch.zeros(47)),
            IncompleteWeightsError,
            r"1 re-shaped: norm.weight \(47,\) instead of \(48,\)",
        ),
        (
            with_tensor("cls_token", torch.zeros(48)),
            IncompleteWeightsError,
            r"1 re-shaped: cls_token \(48,\) instead of \(1, 1, 48\)",
        ),
        (
            with_tensor("patch_embed.proj.weight", torch.zeros(48, 192)),
            ValueError,
            r"patch_embed.proj.weight is of shape \(48, 192\)",
        ),
        (
            with_tensor("blocks.9999999999.layers.0.0.norm.weight", torch.zeros(48)),
            IncompleteWeightsError,
            "1 unexpected: blocks.9999999999",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_states_that_are_not_complete_are_refused(
    change: Callable[[State], None], error: type[Exception], message: str
) -> None:
    tensors = state()
    change(tensors)
    with pytest.raises(error, match=message):
        from_reference(tensors, GOLDEN_FACTS)


def test_encoder_only_checkpoint_says_so() -> None:
    tensors = state()
    without("decoder_blocks.", "decoder_norm.", "decoder_pred.", "mask_token")(tensors)
    message = r"holds an encoder only \(0 decoder layers.*Reconstruction needs a full checkpoint"
    with pytest.raises(ValueError, match=message):
        from_reference(tensors, GOLDEN_FACTS)


@pytest.mark.parametrize(
    "table", ["noise", "rows first", "learned", "wrong count", "flat", "integer"]
)
def test_foreign_positions_are_refused(table: str) -> None:
    tensors = state()
    published = tensors["decoder_pos_embed"]
    patches = published[:, 1:]
    tensors["decoder_pos_embed"] = {
        "noise": torch.randn(1, 17, 48),
        "rows first": torch.cat(
            [published[:, :1], torch.cat([patches[..., 24:], patches[..., :24]], dim=2)], dim=1
        ),
        "learned": published + 0.01,
        "wrong count": published[:, :14],
        "flat": published[:, :1],
        "integer": published.long(),
    }[table]
    with pytest.raises(ValueError, match="is no sin-cos table of any grid"):
        from_reference(tensors, GOLDEN_FACTS)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide dim 48, nearest 4"),
        ({"num_heads": 4, "decoder_num_heads": 7}, "decoder_num_heads 7 does not divide dim 48"),
        ({"num_heads": -4}, "num_heads must be a positive whole number, not -4"),
        ({"num_heads": 0}, "num_heads must be a positive whole number, not 0"),
        ({"num_heads": 4, "decoder_num_heads": 0}, "decoder_num_heads must be a positive"),
        # One head has no output projection, but the file has some.
        ({"num_heads": 1, "decoder_num_heads": 4}, "4 unexpected: blocks.0.layers.0.0.fn.to_out.0"),
    ],
    ids=str,
)
def test_wrong_head_counts_are_refused(heads: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_reference(state(), replace(GOLDEN_FACTS, **heads))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "no state dict found"),
        ({"model": {}}, "no state dict found|is dict, not a tensor"),
        ({"epoch": 3}, "'epoch' is int, not a tensor under a name"),
        ({"model": {"cls_token": [1.0]}}, "'cls_token' is list, not a tensor under a name"),
        ({3: torch.zeros(1)}, "3 is Tensor, not a tensor under a name"),
        ({"weight": torch.zeros(2, 2)}, "no CRATE-MAE checkpoint: patch_embed.proj.weight is miss"),
    ],
    ids=["empty", "empty model", "number", "list", "key", "other model"],
)
def test_other_things_are_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_reference(source, GOLDEN_FACTS)


# --- and back ---------------------------------------------------------------------------------


def test_published_state_returns_bit_for_bit() -> None:
    returned = to_reference(golden_model())
    expected = {k: v for k, v in state().items() if k not in ("pos_embed",)}
    del expected["decoder_embed.weight"], expected["decoder_embed.bias"]
    assert set(returned) == set(expected)
    for key, value in expected.items():
        assert returned[key].shape == value.shape
        if key == "decoder_pos_embed":
            assert gap(returned[key], value) <= 1e-6  # computed anew
        else:
            assert torch.equal(returned[key], value), key


EXPRESSIBLE = [
    name
    for name, config in VARIANTS.items()
    if config.mask_tokens == "encoder"
    and config.overcomplete == 1
    and (config.output_projection == "free" or config.num_heads > 1)
]


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_every_expressible_model_survives_the_published_form(name: str) -> None:
    """A tied map is written out as a separate one, which computes the same."""
    config = VARIANTS[name]
    model = make(config).eval()
    again = from_reference(to_reference(model), facts_of(config))
    assert again.config.output_projection == "free"
    out = model(images_for(config), mask_for(config))
    returned = again(images_for(config), mask_for(config))
    assert gap(returned.prediction, out.prediction) <= 1e-5
    assert gap(returned.loss, out.loss) <= 1e-5
    if config.output_projection == "free":
        assert again.config == config
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value)


def test_returned_state_is_the_callers_own() -> None:
    model = make(tiny())
    before = model.encode(images_for(tiny()))
    for value in to_reference(model).values():
        assert not value.requires_grad
        value.zero_()
    assert torch.equal(model.encode(images_for(tiny())), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_tokens": "decoder"}, "mask tokens in the encoder only"),
        ({"output_projection": "tied", "num_heads": 1}, "no output map with one head"),
        ({"output_projection": "tied", "decoder_num_heads": 1}, "no output map with one head"),
        ({"attention": "tssa"}, "no attention 'tssa'"),
        (
            {"sparse_step": "none", "positions": "learned"},
            "positions 'learned', sparse_step 'none'",
        ),
        ({"compression_step": 0.5}, "no compression_step 0.5"),
        ({"output_projection": "free-no-bias"}, "no output_projection 'free-no-bias'"),
    ],
    ids=str,
)
def test_models_the_published_code_cannot_express_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        to_reference(make(tiny(**changes)))


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "everything", "trainable"),
    [
        ("tiny", 11.56, 11.40),
        ("small", 25.41, 25.18),
        ("base", 44.64, 44.34),
        ("large", 154.27, 153.87),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name: str, everything: float, trainable: float
) -> None:
    """The published code adds an unused d x d map with bias, and two position tables."""
    config = PRESETS[name]
    d, tokens = config.dim, 1 + config.num_patches
    with torch.device("meta"):
        count = sum(p.numel() for p in CrateMAE(config).parameters())
    unused = d * d + d
    assert round((count + unused) / 1e6, 2) == trainable
    assert round((count + unused + 2 * tokens * d) / 1e6, 2) == everything
    # And in closed form: three maps, a bias and two norms in every layer.
    encoder_layer = decoder_layer = 3 * d * d + d + 4 * d
    around = (config.patch_dim * d + d) + 2 * d + 2 * d + 2 * d + (d * config.patch_dim)
    expected = config.depth * encoder_layer + config.decoder_depth * decoder_layer
    assert count == expected + around + config.patch_dim


def test_reading_a_checkpoint_warns_of_nothing(tmp_path: Path) -> None:
    torch.save(training_file(), tmp_path / "checkpoint.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_reference(tmp_path / "checkpoint.pth", GOLDEN_FACTS)


def test_a_pickle_takes_no_memory_for_a_text_longer_than_the_file(tmp_path: Path) -> None:
    """Files of PyTorch before 1.6 are pickles, which tell the length of a text before it comes."""
    path = tmp_path / "old.pth"
    torch.save({"name": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    text = b"X" + struct.pack("<I", 4) + b"name"
    assert content.count(text) == 1
    path.write_bytes(content.replace(text, b"X" + struct.pack("<I", (1 << 32) - 1) + b"name"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="could not be read as plain tensors"):
            published_state(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
