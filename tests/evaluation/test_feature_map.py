"""Maps of features: components, t-SNE on separate groups, and what is refused."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness

from crate_mae.dense.token_pca import principal_axes
from crate_mae.evaluation.feature_map import check_mappable, feature_words, project_features
from crate_mae.evaluation.features import Features
from crate_mae.sources.base import subset
from crate_mae.sources.inputs import open_images


def features(values: torch.Tensor, labels: torch.Tensor | None) -> Features:
    return Features(
        values=values,
        labels=labels,
        names=[str(i) for i in range(len(values))],
        class_names=("a", "b", "c"),
        pool="mean",
        unreadable=[],
    )


def groups() -> Features:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = 20 * torch.eye(8)[labels]
    return features(centres + torch.randn(60, 8, generator=generator), labels)


def test_components() -> None:
    found = project_features(groups(), method="pca")
    mean, axes, explained = principal_axes(groups().values, 2)
    assert found.points.equal((groups().values.double() - mean) @ axes.mT)
    assert f"{float(explained[0]):.0%}" in found.settings
    expected = trustworthiness(groups().values.numpy(), found.points.numpy(), n_neighbors=10)
    assert found.trustworthiness == pytest.approx(expected)
    assert found.neighbours == 10


def test_tsne_keeps_groups_apart_and_is_repeatable() -> None:
    found = project_features(groups(), perplexity=10, seed=3)
    again = project_features(groups(), perplexity=10, seed=3)
    assert found.points.equal(again.points)
    assert "perplexity 10, seed 3" in found.settings
    distances = torch.cdist(found.points, found.points).fill_diagonal_(torch.inf)
    assert bool((found.labels[distances.argmin(1)] == found.labels).all())


@pytest.mark.parametrize(("images", "perplexity"), [(5, "1.33"), (60, "19.7"), (100, "30")])
def test_the_perplexity_is_less_for_few_images(images: int, perplexity: str) -> None:
    values = torch.randn(images, 4, generator=torch.Generator().manual_seed(0))
    found = project_features(features(values, torch.arange(images) % 2))
    assert f"perplexity {perplexity}, " in found.settings


def test_random_points_are_not_trusted() -> None:
    digits = torch.tensor(load_digits().data[:300]).float()
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(300, 2, generator=generator).numpy()
    assert 0.4 < trustworthiness(digits.numpy(), random, n_neighbors=10) < 0.6


def test_what_is_refused() -> None:
    whole = groups()
    for wrong, options, message in (
        (features(whole.values, None), {}, "no labels"),
        (features(whole.values[:4], whole.labels), {}, "at least 5 images"),
        (features(whole.values[:, None], whole.labels), {}, "one row of features"),
        (whole, {"perplexity": 60.0}, "perplexity 60 must be above 1 and below"),
        (whole, {"perplexity": 1.0}, "perplexity"),
        (whole, {"method": "umap"}, "pca, tsne"),
        (features(whole.values * torch.inf, whole.labels), {}, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            project_features(wrong, **options)


def test_words_and_labels() -> None:
    words = feature_words(groups(), (32, 24))
    assert words == "Features: mean of patch tokens after final norm, images 32x24."
    wide = feature_words(replace(groups(), pool="layers", layer=2), (8, 8))
    assert "of several layers, the last after 2 encoder layers, images 8x8" in wide
    digits = open_images(["digits"], split="test", limit=5)
    check_mappable(digits)
    with pytest.raises(ValueError, match="a limit of at most 10000"):
        check_mappable(subset(digits, [0] * 10_001))
