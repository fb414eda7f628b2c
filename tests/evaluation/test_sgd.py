"""A grid of linear classifiers against torch's own layers, loss, optimiser and schedule."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.evaluation.sgd import INITIAL_STD, LinearGrid

SETTINGS = list(itertools.product((0.01, 0.1, 1.0), (0.0, 0.01)))


def points(n: int = 70, dim: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    centres = 2 * torch.randn(classes, dim, generator=generator)
    return centres[y] + torch.randn(n, dim, generator=generator), y


def grid(settings: list[tuple[float, float]], *, batch_norm: bool, seed: int = 3) -> LinearGrid:
    return LinearGrid(settings, dim=5, num_classes=3, batch_norm=batch_norm, seed=seed)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("batch_size", [16, 1000])
def test_a_grid_is_each_point_trained_alone_by_torch(batch_norm: bool, batch_size: int) -> None:
    X, y = points()
    epochs, size = 4, min(batch_size, 70)
    whole = grid(SETTINGS, batch_norm=batch_norm)
    start = whole.weight[0].clone()
    assert all(torch.equal(start, weight) for weight in whole.weight)
    whole.train(X, y, epochs=epochs, batch_size=batch_size)
    for index, (rate, decay) in enumerate(SETTINGS):
        norm = nn.BatchNorm1d(5, eps=1e-6, affine=False) if batch_norm else nn.Identity()
        linear = nn.Linear(5, 3)
        linear.weight.data, linear.bias.data = start.clone(), torch.zeros(3)
        optimiser = torch.optim.SGD(
            [
                {"params": [linear.weight], "weight_decay": decay},
                {"params": [linear.bias], "weight_decay": 0.0},
            ],
            lr=rate,
            momentum=0.9,
        )
        steps = epochs * (70 // size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
        generator = torch.Generator().manual_seed(3)
        for _ in range(epochs):
            order = torch.randperm(70, generator=generator)
            for rows in torch.split(order, size):
                if len(rows) < size:
                    continue
                optimiser.zero_grad()
                torch.autograd.backward(F.cross_entropy(linear(norm(X[rows])), y[rows]))
                optimiser.step()
                schedule.step()
        torch.testing.assert_close(whole.weight[index], linear.weight, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(whole.bias[index, 0], linear.bias, atol=2e-5, rtol=1e-4)
        answers = linear(norm.eval()(X)).argmax(dim=1)
        assert torch.equal(whole.answers(X)[index], answers)
        alone = grid([(rate, decay)], batch_norm=batch_norm)
        alone.train(X, y, epochs=epochs, batch_size=batch_size)
        torch.testing.assert_close(alone.weight[0], whole.weight[index])


def test_seeds_change_start_and_order() -> None:
    X, y = points()
    first, second = (grid([(0.1, 0.0)], batch_norm=False, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.weight, second.weight)
    assert float(first.weight.std()) == pytest.approx(INITIAL_STD, rel=0.5)
    for trained in (first, second):
        trained.train(X, y, epochs=3, batch_size=10)
    again = grid([(0.1, 0.0)], batch_norm=False, seed=0)
    again.train(X, y, epochs=3, batch_size=10)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, second.weight)


def test_a_point_that_diverges_leaves_the_others_alone() -> None:
    X, y = points()
    X[:, 0] *= 1e20
    both = grid([(0.01, 0.0), (1e30, 0.0)], batch_norm=False)
    both.train(X, y, epochs=3, batch_size=10)
    assert not both.finite()[1]
    X, y = points()
    both = grid([(0.01, 0.0), (1e30, 1e3)], batch_norm=False)
    alone = grid([(0.01, 0.0)], batch_norm=False)
    for trained in (both, alone):
        trained.train(X, y, epochs=30, batch_size=10)
    assert both.finite() == [True, False]
    torch.testing.assert_close(both.weight[0], alone.weight[0])


def test_batch_norm_takes_features_at_any_scale() -> None:
    X, y = points()
    huge = grid([(0.1, 0.0)], batch_norm=True)
    huge.train(1e4 * X + 1e5, y, epochs=20, batch_size=16)
    assert float((huge.answers(1e4 * X + 1e5)[0] == y).double().mean()) > 0.9


def test_long_sets_are_answered_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = points()
    trained = grid(SETTINGS, batch_norm=True)
    trained.train(X, y, epochs=2, batch_size=16)
    whole = trained.answers(X)
    assert whole.shape == (len(SETTINGS), 70)
    monkeypatch.setattr("crate_mae.evaluation.sgd.BLOCK_VALUES", 7 * 3 * len(SETTINGS))
    assert torch.equal(trained.answers(X), whole)


def test_progress_counts_epochs() -> None:
    X, y = points()
    heard: list[tuple[int, int]] = []
    trained = grid([(0.1, 0.0)], batch_norm=False)
    trained.train(X, y, epochs=3, batch_size=10, progress=lambda *count: heard.append(count))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert math.isfinite(float(trained.weight.sum()))
