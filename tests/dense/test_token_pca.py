"""Components of tokens: against numpy and scikit-learn; signs, foreground and files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from torch import Tensor

from crate_mae.dense.basis_files import check_basis_target, load_basis, save_basis
from crate_mae.dense.layout import Layout
from crate_mae.dense.token_maps import TokenMap
from crate_mae.dense.token_pca import (
    find_foreground,
    fit_basis,
    fit_token_map,
    inside_more_often,
    principal_axes,
)


def tokens(seed: int = 0, images: int = 4, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(images, 5, 6, width, generator=generator) @ mix + 3


def centred_object(images: int = 3) -> Tensor:
    """Tokens of 6 x 6 with an object of 2 x 2 inside that differs in one direction."""
    values = 0.05 * torch.randn(images, 6, 6, 4, generator=torch.Generator().manual_seed(1))
    values[:, 2:4, 2:4] += torch.tensor([1.0, -2.0, 0.5, 0.0])
    return values


def test_axes_against_numpy_and_scikit_learn() -> None:
    rows = tokens().reshape(-1, 7)
    mean, axes, explained = principal_axes(rows, 3)
    exact = rows.double().numpy()
    _, singular, right = np.linalg.svd(exact - exact.mean(0), full_matrices=False)
    assert np.allclose(mean, exact.mean(0))
    for found, expected in zip(axes.numpy(), right[:3], strict=True):
        assert abs(found @ expected) == pytest.approx(1, abs=1e-9)
        assert found[np.abs(found).argmax()] > 0
    assert np.allclose(explained, singular[:3] ** 2 / (singular**2).sum())
    theirs = PCA(3, svd_solver="full").fit(exact)
    scores = (rows.double() - mean) @ axes.mT
    assert np.allclose(np.abs(scores.numpy()), np.abs(theirs.transform(exact)), atol=1e-8)


def test_the_order_and_number_of_passes_do_not_change_the_picture() -> None:
    values = tokens()
    basis = fit_basis(values)
    shuffled = fit_basis(values[torch.tensor([2, 0, 3, 1])].flip(1, 2))
    assert torch.allclose(basis.axes, shuffled.axes, atol=1e-9)
    assert torch.allclose(basis.levels(values), shuffled.levels(values), atol=1e-6)
    # Turned-round data has turned-round scores, by the rule on signs: same axes.
    turned = fit_basis(2 * values.double().mean((0, 1, 2)).float() - values)
    assert torch.allclose(turned.axes, basis.axes, atol=1e-5)


def test_levels_run_between_quantiles() -> None:
    values = tokens(images=8)
    basis = fit_basis(values, quantile=0.1)
    scores = basis.scores(values).reshape(-1, 3).numpy()
    assert np.allclose(basis.low, np.quantile(scores, 0.1, axis=0))
    levels = basis.levels(values)
    assert levels.shape == (8, 5, 6, 3)
    assert float(levels.min()) == 0
    assert float(levels.max()) == 1
    clipped = (levels == 0).double().mean(dim=(0, 1, 2))
    assert torch.allclose(clipped, torch.full((3,), 0.1, dtype=torch.float64), atol=0.01)
    assert basis.tokens == 240


def test_foreground_is_what_the_border_has_less_of() -> None:
    values = centred_object()
    truth = torch.zeros(3, 6, 6, dtype=torch.bool)
    truth[:, 2:4, 2:4] = True
    for sign in (1, -1):
        found = find_foreground(sign * values)
        assert found.mask(sign * values).equal(truth)
        flipped = find_foreground(sign * values, flip=True)
        assert flipped.mask(sign * values).equal(~truth)
        assert "opposite" in flipped.rule
    cut = find_foreground(values, quantile=0.5)
    assert float(cut.mask(values).double().mean()) == pytest.approx(0.5, abs=0.01)
    basis = fit_basis(values, foreground=find_foreground(values))
    assert basis.tokens == 12
    inside = values[truth].double()
    assert torch.allclose(basis.mean, inside.mean(0))


def test_the_border_rule() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 1:3] = True
    assert inside_more_often(mask)
    assert not inside_more_often(~mask)
    assert inside_more_often(torch.ones(1, 4, 4, dtype=torch.bool))
    assert inside_more_often(torch.zeros(1, 2, 9, dtype=torch.bool))  # no inside


def as_map(values: Tensor) -> TokenMap:
    layout = Layout(image_hw=(12, 12), patch_hw=(2, 2), stride=(2, 2), trained_hw=(12, 12))
    return TokenMap(values=values, layer=2, kind="compressed", layout=layout)


def test_one_basis_or_one_for_each() -> None:
    values = centred_object()
    (joint,) = fit_token_map(as_map(values), foreground=True)
    assert (joint.layer, joint.kind, joint.images) == (2, "compressed", 3)
    assert torch.equal(joint.axes, fit_basis(values, foreground=find_foreground(values)).axes)
    each = fit_token_map(as_map(values), each=True)
    assert len(each) == 3
    assert torch.equal(each[1].axes, fit_basis(values[1:2]).axes)


@pytest.mark.parametrize("foreground", [False, True])
def test_a_saved_basis_gives_the_same_colours(tmp_path: Path, foreground: bool) -> None:
    values = centred_object()
    (basis,) = fit_token_map(as_map(values), foreground=foreground)
    path = save_basis(basis, tmp_path / "b.safetensors", weights_hash="ab" * 32)
    again = load_basis(path, weights_hash="ab" * 32)
    assert again.levels(values).equal(basis.levels(values))
    assert (again.layer, again.kind, again.images) == (2, "compressed", 3)
    if basis.foreground is not None:
        assert again.foreground is not None
        assert again.foreground.mask(values).equal(basis.foreground.mask(values))
        assert again.foreground.rule == basis.foreground.rule
    assert load_basis(path).tokens == basis.tokens
    with pytest.raises(ValueError, match="fitted on tokens of weights abababababab"):
        load_basis(path, weights_hash="cd" * 32)
    with pytest.raises(FileExistsError):
        save_basis(basis, path, weights_hash=None)
    with pytest.raises(ValueError, match=r"\.safetensors"):
        check_basis_target(tmp_path / "b.npz")


def test_files_that_are_no_basis(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    with pytest.raises(FileNotFoundError):
        load_basis(path)
    (basis,) = fit_token_map(as_map(centred_object()))
    save_basis(basis, path, weights_hash=None)
    good = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["crate_mae"])
    damages: list[tuple[dict[str, Tensor], dict[str, object]]] = [
        ({}, {"format": "other/1"}),
        ({}, {"kind": "keys"}),
        ({"mean": torch.zeros(3, dtype=torch.float64)}, {}),
        ({"low": torch.full((3,), torch.nan, dtype=torch.float64)}, {}),
        ({"axes": torch.zeros(5, 4, dtype=torch.float64)}, {}),
        ({}, {"foreground": {"threshold": 0}}),
    ]
    for tensors, changed in damages:
        save_file({**good, **tensors}, path, metadata={"crate_mae": json.dumps(facts | changed)})
        with pytest.raises(ValueError, match="no basis file of ours"):
            load_basis(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no basis file of ours"):
        load_basis(path)


def test_tokens_without_directions() -> None:
    values = tokens()
    for wrong, message in (
        (torch.ones(1, 5, 6, 7), "all 30 tokens are equal"),
        (torch.full((1, 5, 6, 7), torch.nan), "not finite"),
        (values[:1, :1, :2], "3 components of 2 tokens, 7 wide, do not exist; from 1 to 1 do"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_basis(wrong)
    for quantile in (-0.1, 0.5):
        with pytest.raises(ValueError, match="quantile"):
            fit_basis(values, quantile=quantile)
    for quantile in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            find_foreground(values, quantile=quantile)
    basis = fit_basis(values)
    with pytest.raises(ValueError, match="tokens 7 wide, not 5"):
        basis.scores(torch.zeros(2, 5))
    flat = replace(basis, high=basis.low)
    assert bool(flat.levels(values).isfinite().all())


def test_sides_and_thresholds_are_of_a_foreground() -> None:
    values = as_map(centred_object())
    for ignored in ({"flip": True}, {"threshold": 0.5}):
        with pytest.raises(ValueError, match="flip and threshold are of the foreground"):
            fit_token_map(values, **ignored)
        assert fit_token_map(values, foreground=True, **ignored)
