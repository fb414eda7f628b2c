"""What training keeps weights to, and a decoder of its mirror's weights, against definitions."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from model_cases import FAMILY, gap, images_for, make, mask_for, some, tiny
from torch import Tensor, nn
from training_runs import small_config, small_finetune

from crate_mae import load_model, save_model
from crate_mae.evaluation.backbones import build_autoencoder
from crate_mae.export.exporting import export_model
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import ModelConfig
from crate_mae.models.constraints import keep_constraints, limit_norm, make_orthogonal
from crate_mae.models.exact import ExactCompression
from crate_mae.training.average import RunningAverage
from crate_mae.training.config import TrainerConfig
from crate_mae.training.finetune import finetune
from crate_mae.training.pretrain import pretrain
from crate_mae.weights.published import to_reference

FAITHFUL = FAMILY["faithful"]


U_0 = "encoder.layers.0.mssa.subspaces.weight"


def far_from_orthogonal(matrix: Tensor) -> float:
    wide = matrix.detach().double()
    return gap(wide @ wide.mT, torch.eye(len(wide), dtype=torch.float64))


def gram_schmidt(matrix: Tensor) -> Tensor:
    """The orthogonal factor, column by column."""
    columns: list[Tensor] = []
    for column in matrix.double().unbind(dim=1):
        rest = column - sum((c * (c @ column) for c in columns), torch.zeros_like(column))
        columns.append(rest / rest.square().sum().sqrt())
    return torch.stack(columns, dim=1)


@given(size=st.integers(1, 9), seed=st.integers(0, 99))
@some
def test_the_orthogonal_factor_is_that_of_gram_and_schmidt(size: int, seed: int) -> None:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    expected = gram_schmidt(matrix)
    make_orthogonal(matrix)
    assert gap(matrix, expected) <= 1e-6 * max(1.0, float(expected.abs().max()))
    again = matrix.clone()
    make_orthogonal(again)
    assert gap(again, matrix) <= 3e-7
    assert far_from_orthogonal(matrix) <= 1e-6


@given(rows=st.integers(1, 5), wider=st.integers(0, 6), limit=st.floats(0.1, 8))
@some
def test_a_norm_is_limited_by_cutting_singular_values(rows: int, wider: int, limit: float) -> None:
    torch.manual_seed(rows + 10 * wider)
    matrix = torch.randn(rows, rows + wider)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    expected = left @ values.clamp(max=limit).diag() @ right
    if values.max() <= limit:
        expected = matrix
    limit_norm(matrix, limit)
    assert gap(matrix, expected) <= 1e-6


def test_a_matrix_of_zeros_is_within_every_limit() -> None:
    matrix = torch.zeros(3, 4)
    limit_norm(matrix, 0.5)
    assert torch.equal(matrix, torch.zeros(3, 4))


@pytest.mark.parametrize("attention", ["mssa", "exact", "tssa"])
def test_steps_of_an_optimiser_leave_constraints_kept(attention: Any) -> None:
    config = replace(FAITHFUL, attention=attention, mirrored_decoder=False)
    torch.manual_seed(0)
    model = CrateMAE(config)
    images, mask = images_for(config), mask_for(config)
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(model(images, mask).loss)
        optimizer.step()
        keep_constraints(model)
    moved = 0.0
    for layer, old in zip(model.encoder.layers, before.encoder.layers, strict=True):
        moved += gap(layer.mssa.subspaces.weight, old.mssa.subspaces.weight)
        assert far_from_orthogonal(layer.mssa.subspaces.weight) <= 1e-6
        norm = torch.linalg.matrix_norm(layer.ista.dictionary.detach().double(), 2)
        assert config.step_size * float(norm) ** 2 <= 1 + 1e-5
    for decoding in model.decoder:
        assert far_from_orthogonal(decoding.mssa.subspaces.weight) <= 1e-6
    assert moved > 1e-2


def test_nothing_is_kept_where_nothing_is_asked_for_or_trains() -> None:
    plain, faithful = make(tiny()), make(FAITHFUL)
    faithful.requires_grad_(False)
    for model in (plain, faithful):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        keep_constraints(model)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    keep_constraints(faithful, frozen=True)
    assert far_from_orthogonal(faithful.state_dict()[U_0]) <= 1e-6


def test_the_average_of_models_keeps_constraints_too() -> None:
    torch.manual_seed(0)
    first, second = CrateMAE(FAITHFUL), CrateMAE(FAITHFUL)
    average = RunningAverage(first, from_start=True)
    average.follow(second, 0.5)
    (U,) = [
        value
        for key, value in average.state_dict().items()
        if key.endswith("0.mssa.subspaces.weight")
    ]
    assert far_from_orthogonal(U) <= 1e-6
    assert gap(U, first.state_dict()[U_0]) > 0.01


@given(c=st.floats(0.01, 1), heads=st.integers(1, 3), tokens=st.integers(1, 9))
@some
def test_an_exact_step_within_bounds_lowers_the_rate(c: float, heads: int, tokens: int) -> None:
    """Every singular value s of the coordinates becomes s (1 - c / (1 + a s^2)), so R^c falls."""
    torch.manual_seed(tokens)
    operator = ExactCompression(dim=4 * heads, num_heads=heads, eps_squared=0.3).double()
    make_orthogonal(operator.subspaces.weight)
    x = torch.randn(1, tokens, 4 * heads, dtype=torch.float64)
    a = 4 / (tokens * 0.3)

    def singular(at: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svdvals(operator.project(at))
        return values

    before, after = singular(x), singular(x + c * operator(x))
    expected = before * (1 - c / (1 + a * before.square()))
    assert gap(after, expected.sort(descending=True).values) <= 1e-9
    rates = [(1 + a * s.square()).log().sum() / 2 for s in (before, after)]
    assert rates[1] < rates[0]


@pytest.mark.parametrize("sparse", ["ista", "none"])
def test_a_mirrored_decoder_computes_what_copies_of_the_weights_would(sparse: Any) -> None:
    config = replace(FAITHFUL, sparse_step=sparse, mask_tokens="decoder")
    model = make(config)
    plain = CrateMAE(replace(config, mirrored_decoder=False))
    state = dict(model.state_dict())
    for layer in range(2):
        mirror = f"encoder.layers.{1 - layer}"
        state[f"decoder.{layer}.mssa.subspaces.weight"] = state[f"{mirror}.mssa.subspaces.weight"]
        if sparse == "ista":
            state[f"decoder.{layer}.synthesis.weight"] = state[f"{mirror}.ista.dictionary"]
    plain.load_state_dict(state)
    images, mask = images_for(config), mask_for(config)
    found, expected = model(images, mask), plain(images, mask)
    assert gap(found.prediction, expected.prediction) <= 1e-6
    for output in (found, expected):
        torch.autograd.backward(output.loss)
    # One weight of two layers has the sum of what its copies have.
    shared, copies = dict(model.named_parameters()), dict(plain.named_parameters())
    for layer in range(2):
        U = f"encoder.layers.{1 - layer}.mssa.subspaces.weight"
        whole = shared[U].grad
        parts = [copies[U].grad, copies[f"decoder.{layer}.mssa.subspaces.weight"].grad]
        assert whole is not None
        first, second = (part for part in parts if part is not None)
        assert gap(whole, first + second) <= 1e-6
        assert float(second.abs().max()) > 1e-6


def test_a_mirrored_decoder_has_no_weights_of_its_own_but_norms() -> None:
    model = CrateMAE(FAITHFUL)
    own = {name for name in model.state_dict() if name.startswith("decoder.")}
    assert own == {
        f"decoder.{i}.norm{n}.{p}" for i in (0, 1) for n in (1, 2) for p in ("weight", "bias")
    }
    again = copy.deepcopy(model)
    for index, layer in enumerate(again.decoder):
        mirror = again.encoder.layers[1 - index]
        assert layer.mssa is mirror.mssa
        assert layer.dictionary is mirror.dictionary
    assert again.double()(images_for(FAITHFUL).double()).loss.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"decoder_depth": 1},
            "mirrored_decoder needs decoder_depth equal to the encoder's 2, not 1",
        ),
        ({"decoder_num_heads": 2}, "needs decoder_num_heads equal to the encoder's 3, not 2"),
        ({"overcomplete": 2}, "with sparse_step overcomplete it takes steps of its own"),
        ({"compression_step": None}, "need a compression_step above 0 and up to 1, not None"),
        ({"compression_step": 1.5}, "need a compression_step above 0 and up to 1, not 1.5"),
        ({"output_projection": "free"}, "set output_projection to tied, not free"),
        ({"orthonormal_subspaces": False}, "set orthonormal_subspaces, too"),
        ({"mirrored_decoder": 1}, "mirrored_decoder must be true or false, not 1"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(FAITHFUL, **changes)


def test_sharded_weights_cannot_be_kept() -> None:
    sharded = TrainerConfig(strategy="fsdp", accelerator="auto")
    with pytest.raises(ValueError, match=r"model\.orthonormal_subspaces needs whole weights"):
        small_config(model=faithful_digits(), trainer=sharded)
    with pytest.raises(ValueError, match=r"model\.mirrored_decoder needs whole weights"):
        small_config(
            model=replace(faithful_digits(), orthonormal_subspaces=False, bounded_steps=False),
            trainer=sharded,
        )


def faithful_digits() -> ModelConfig:
    config = small_config().model
    assert config is not None
    return replace(
        config,
        output_projection="tied",
        attention_skip="normalised",
        compression_step=0.5,
        decoder_num_heads=config.num_heads,
        decoder_depth=config.depth,
        orthonormal_subspaces=True,
        bounded_steps=True,
        mirrored_decoder=True,
    )


def test_runs_keep_them_and_their_averages_too(tmp_path: Path) -> None:
    config = small_config(model=faithful_digits())
    config = replace(config, optim=replace(config.optim, epochs=1, warmup_epochs=0))
    pretrain(config, tmp_path / "run")
    trained = load_model(tmp_path / "run")
    start = build_autoencoder(config.model, vitmae=None, seed=config.seed)
    tuned = small_finetune(model=None, weights=str(tmp_path / "run"))
    tuned = replace(tuned, optim=replace(tuned.optim, epochs=1, warmup_epochs=0, drop_path=0.0))
    finetune(tuned, tmp_path / "tuned")
    for model in (trained, load_model(tmp_path / "tuned")):
        assert model.config.orthonormal_subspaces
        for layer in model.encoder.layers:
            assert far_from_orthogonal(layer.mssa.subspaces.weight) <= 1e-6
    assert gap(trained.state_dict()[U_0], cast("nn.Module", start).state_dict()[U_0]) > 1e-3


def test_exports_and_transformers_compute_the_same(tmp_path: Path) -> None:
    ours = pytest.importorskip("crate_mae.transformers")
    model = make(FAITHFUL).eval()
    folder = save_model(model, tmp_path / "weights")
    images, mask = images_for(FAITHFUL), mask_for(FAITHFUL, removed=4)
    with torch.inference_mode():
        expected = model(images, mask).prediction
    done = export_model(folder, tmp_path / "pt2", format="pt2", what="reconstruct")
    assert done.difference <= 1e-4
    other = ours.CrateMAEForPreTraining.from_pretrained(folder).eval()
    with torch.inference_mode():
        assert gap(other(images, bool_masked_pos=mask).logits, expected) <= 1e-6
    other.save_pretrained(tmp_path / "again")
    again = ours.CrateMAEForPreTraining.from_pretrained(tmp_path / "again").eval()
    with torch.inference_mode():
        assert gap(again(images, bool_masked_pos=mask).logits, expected) <= 1e-6
    fresh = ours.CrateMAEForPreTraining(other.config)
    assert far_from_orthogonal(fresh.encoder.layers[0].mssa.subspaces.weight) <= 1e-6


def test_the_published_layout_has_no_mirrored_decoder() -> None:
    mirrored = tiny(mirrored_decoder=True, decoder_num_heads=3)
    with pytest.raises(ValueError, match="the published code has no mirrored_decoder True"):
        to_reference(CrateMAE(mirrored))
    orthonormal = CrateMAE(tiny(orthonormal_subspaces=True))  # a published model like others
    U = to_reference(orthonormal)["blocks.0.layers.0.0.fn.qkv.weight"]
    assert torch.equal(U, orthonormal.state_dict()[U_0])
