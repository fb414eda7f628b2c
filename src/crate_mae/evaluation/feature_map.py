"""Features of labelled images in two dimensions, and how much of them that picture keeps."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from crate_mae.dense.token_pca import principal_axes
from crate_mae.evaluation.features import Features
from crate_mae.sources.base import ImageSource

MapMethod = Literal["pca", "tsne"]

NEIGHBOURS = 10
MAX_IMAGES = 10_000
"""All pairs of them are compared: two arrays of 0.8 GB."""


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """A point in the plane for every image."""

    points: Tensor
    """(n, 2) float64"""
    labels: Tensor
    """(n,) int64, -1 for an image without a label."""
    class_names: tuple[str, ...] | None
    method: MapMethod
    trustworthiness: float
    """From 0 to 1: how far the neighbours in the plane are neighbours among the features, too
    (Venna and Kaski 2001); about 0.5 for points laid out at random."""
    neighbours: int
    """How many neighbours that number is about."""
    settings: str
    """The method and its settings, as a caption says them."""


def project_features(
    features: Features,
    *,
    method: MapMethod = "tsne",
    perplexity: float | None = None,
    seed: int = 0,
) -> FeatureMap:
    """Features (n, d) laid out in the plane by their first two components or by t-SNE.

    t-SNE starts from the principal components, so `seed` matters little; "pca" has no randomness
    and the sign rule of `principal_axes`. Without a perplexity it is 30, for
    fewer than 91 images a third of the others: t-SNE looks at three times as many neighbours.
    Raises ValueError for unlabelled, token or non-finite features, fewer than 5 images, and a
    perplexity that is not above 1 and below the number of images.
    """
    if method not in get_args(MapMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(MapMethod))}, not {method!r}")
    values, labels = features.values, features.labels
    if labels is None:
        raise ValueError("the images have no labels to colour by; use a labelled source")
    if values.ndim != 2 or len(values) < 5:
        raise ValueError(
            f"a map needs one row of features for each of at least 5 images, not {values.shape[0]}"
            f" of shape {tuple(values.shape[1:])}"
        )
    mean, axes, explained = principal_axes(values, 2)
    if method == "pca":
        points = (values.double() - mean) @ axes.mT
        shares = " and ".join(f"{share:.0%}" for share in explained.tolist())
        settings = f"first two principal components ({shares} of the variance)"
    else:
        usual = min(30.0, (len(values) - 1) / 3)
        points, settings = _tsne(values, usual if perplexity is None else perplexity, seed)
    neighbours = min(NEIGHBOURS, (len(values) - 1) // 2)
    return FeatureMap(
        points=points,
        labels=labels,
        class_names=features.class_names,
        method=method,
        trustworthiness=_trustworthiness(values, points, neighbours),
        neighbours=neighbours,
        settings=settings,
    )


def check_mappable(source: ImageSource) -> None:
    """Raise ValueError for a source without labels or too large, before any is read."""
    if all(source.label(index) is None for index in range(len(source))):
        raise ValueError(
            f"the images of {source.address} have no labels to colour by; use a labelled source"
        )
    if len(source) > MAX_IMAGES:
        raise ValueError(
            f"a map of {len(source)} images would compare every two of them: use a limit of at most"
            f" {MAX_IMAGES}"
        )


def feature_words(features: Features, size: tuple[int, int]) -> str:
    """What the features are, as a caption says it; `size` is the images' height and width."""
    pooled = {
        "mean": "mean of patch tokens",
        "cls": "class token",
        "mean-std": "mean and standard deviation of patch tokens",
        "layers": "mean and standard deviation of patch tokens of several layers, the last",
    }.get(features.pool, features.pool)
    where = "final norm" if features.layer is None else f"{features.layer} encoder layers"
    return f"Features: {pooled} after {where}, images {size[0]}x{size[1]}."


def _tsne(values: Tensor, perplexity: float, seed: int) -> tuple[Tensor, str]:
    from sklearn.manifold import TSNE

    if not 1 < perplexity < len(values):
        raise ValueError(
            f"perplexity {perplexity:g} must be above 1 and below the number of images,"
            f" {len(values)}"
        )
    embedded = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(
        values.double().numpy()
    )
    return torch.from_numpy(embedded).double(), f"t-SNE, perplexity {perplexity:.3g}, seed {seed}"


def _trustworthiness(values: Tensor, points: Tensor, neighbours: int) -> float:
    from sklearn.manifold import trustworthiness

    return float(trustworthiness(values.numpy(), points.numpy(), n_neighbors=neighbours))
