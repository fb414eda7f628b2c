"""The geometry of weights against hand-made subspaces, numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from crate_mae.models.mssa import MSSA
from crate_mae.whitebox.geometry import (
    coherence,
    matrix_cosine,
    orthogonality_error,
    orthonormality_error,
    principal_cosines,
    spectral_norm,
    subspace_bases,
    subspace_overlap,
    tied_distance,
)


def planes(angle: float) -> torch.Tensor:
    """Two planes in four dimensions, all principal angles between them equal to `angle`."""
    first = torch.eye(4, dtype=torch.float64)[:, :2]
    second = math.cos(angle) * first + math.sin(angle) * torch.eye(4, dtype=torch.float64)[:, 2:]
    return torch.stack([first, second])


def test_bases_are_the_blocks_that_mssa_projects_on() -> None:
    torch.manual_seed(0)
    mssa = MSSA(dim=12, num_heads=3, output_projection="free")
    x = torch.randn(2, 5, 12)
    by_bases = torch.einsum("bnd,kdp->bknp", x.double(), subspace_bases(mssa))
    assert torch.allclose(by_bases, mssa.project(x).double(), atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, math.pi / 2])
def test_planes_at_a_known_angle(angle: float) -> None:
    cosines = principal_cosines(planes(angle))
    assert torch.allclose(cosines[0, 1], torch.full((2,), math.cos(angle)).double(), atol=1e-9)
    assert torch.allclose(cosines[0, 0], torch.ones(2).double())
    overlap = subspace_overlap(planes(angle))
    assert float(overlap[0, 1]) == pytest.approx(math.cos(angle) ** 2, abs=1e-12)


def test_principal_angles_are_scipys() -> None:
    U = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cosines = principal_cosines(U)
    for i in range(3):
        for j in range(3):
            expected = np.cos(subspace_angles(U[i].numpy(), U[j].numpy()))
            assert sorted(cosines[i, j].tolist()) == pytest.approx(sorted(expected), abs=1e-8)


def test_orthonormality_of_known_columns() -> None:
    U = torch.stack([torch.eye(4)[:, :2], 3 * torch.eye(4)[:, :2], torch.ones(4, 2)]).double()
    error, shape = orthonormality_error(U), orthogonality_error(U)
    assert error.tolist() == pytest.approx([0, 8, math.sqrt((3**2 * 2 + 4**2 * 2) / 2)])
    # Equal columns: after scaling, the Gram matrix is all ones, its distance from I is sqrt(2 / 2).
    assert shape.tolist() == pytest.approx([0, 0, 1])
    assert orthogonality_error(torch.zeros(1, 4, 2)).tolist() == [0]


def test_coherence_of_known_atoms() -> None:
    assert coherence(torch.eye(3)) == (0, 0)
    D = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    largest, typical = coherence(D)
    assert largest == pytest.approx(1)
    assert typical == pytest.approx(math.sqrt(2 / 6))
    assert coherence(torch.zeros(3, 3)) == (0, 0)


@pytest.mark.parametrize("atoms", [1, 3, 4, 7, 9])
def test_coherence_of_any_number_of_atoms_by_loops(atoms: int) -> None:
    generator = torch.Generator().manual_seed(0)
    D = torch.randn(4, atoms, generator=generator, dtype=torch.float64)
    cosines = [
        abs(float(D[:, i] @ D[:, j] / (D[:, i].norm() * D[:, j].norm())))
        for i in range(atoms)
        for j in range(atoms)
        if i != j
    ]
    expected = (max(cosines, default=0), (sum(c**2 for c in cosines) / max(len(cosines), 1)) ** 0.5)
    assert coherence(D) == pytest.approx(expected)


def test_distance_from_the_tied_map() -> None:
    torch.manual_seed(0)
    mssa = MSSA(dim=8, num_heads=2, output_projection="free")
    assert mssa.output is not None
    with torch.no_grad():
        mssa.output.weight.copy_(3 * mssa.subspaces.weight.T)
    assert tied_distance(mssa) == pytest.approx((1, 0), abs=1e-6)
    with torch.no_grad():
        mssa.output.weight.copy_(torch.zeros(8, 8).fill_diagonal_(1))
        mssa.subspaces.weight.copy_(torch.eye(8).roll(1, dims=0))
    assert tied_distance(mssa) == pytest.approx((0, 1))
    assert tied_distance(MSSA(dim=8, num_heads=2, output_projection="tied")) == (1, 0)
    single = MSSA(dim=8, num_heads=1, output_projection="free")
    with torch.no_grad():
        single.subspaces.weight.copy_(torch.eye(8))
    assert tied_distance(single) == pytest.approx((1, 0))


def test_matrix_norms_and_cosines() -> None:
    assert spectral_norm(torch.diag(torch.tensor([1.0, -4.0]))) == pytest.approx(4)
    assert matrix_cosine(torch.eye(2), torch.ones(2, 2)) == pytest.approx(1 / math.sqrt(2))
    assert matrix_cosine(torch.zeros(2, 2), torch.ones(2, 2)) == 0
