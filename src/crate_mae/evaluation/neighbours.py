"""Which images of a set are alike by their features: nearest ones, near-duplicates, outliers.

Similarity is the cosine of standardised features (each column by its mean and deviation over the
set): raw features share a large mean, beside which all images look alike.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.batches.prepared import prepared_batches
from crate_mae.batches.transforms import displayed
from crate_mae.common.progress import Progress
from crate_mae.evaluation.features import Features
from crate_mae.evaluation.knn import nearest
from crate_mae.evaluation.regression import standardising
from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource, subset

DUPLICATE_SIMILARITY = 0.95
"""Similarity from which two images are looked at as near-duplicates."""
DUPLICATE_PIXELS = 0.08
"""Root mean square difference of their pixels, as a share of their range, up to which they are."""
OUTLIER_NEIGHBOURS = 10
"""Nearest images over which an image's similarity is averaged, to find those that have none."""
SAME_SIMILARITY = 0.9999
"""Similarity from which an image of the same name is the same image, whatever rounding does."""
CANDIDATES = 8
"""Nearest images of each that may be its near-duplicates."""
MOST_PAIRS = 500
"""Pairs whose pixels are compared: their images are in memory at once."""
ROWS = 1024
"""Images that are compared with all others at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Two images and how alike they are; numbers are rows of the features they came from."""

    first: int
    second: int
    similarity: float
    """From -1 to 1."""
    pixels: float | None = None
    """Root mean square difference of the prepared pixels as a share of their range, if measured."""


class FeatureSpace:
    """Images of a set as directions, in which others can be placed."""

    def __init__(self, features: Features) -> None:
        """Take the features of the set; raises ValueError for fewer than two images, or tokens."""
        if features.values.ndim != 2 or len(features.values) < 2:
            raise ValueError(
                f"neighbours need one row of features for each of at least two images, not"
                f" {tuple(features.values.shape)}"
            )
        self.features = features
        self.mean, self.scale = standardising(features.values)
        self.directions = self.place(features.values)

    def place(self, values: Tensor) -> Tensor:
        """The directions (m, d) of features (m, d) of other images."""
        return F.normalize((values - self.mean) * self.scale, dim=1)

    def nearest_to(self, queries: Features, count: int) -> list[list[Alike]]:
        """For each query (`first`) the `count` most similar images of the set, nearest first.

        An image of the same name and the same features is the query itself, and is left out.
        Raises ValueError for a count below 1.
        """
        if count < 1:
            raise ValueError(f"at least one neighbour has to be asked for, not {count}")
        values, indices = nearest(self.place(queries.values), self.directions, count + 1)
        found = []
        for row, name in enumerate(queries.names):
            pairs = [
                Alike(first=row, second=index, similarity=similarity)
                for similarity, index in zip(
                    values[row].tolist(), indices[row].tolist(), strict=True
                )
                if self.features.names[index] != name or similarity < SAME_SIMILARITY
            ]
            found.append(pairs[:count])
        return found

    def similar_pairs(
        self, least: float = DUPLICATE_SIMILARITY, progress: Progress | None = None
    ) -> list[Alike]:
        """Pairs of images at least so similar, most similar first.

        Each image is compared with its `CANDIDATES` nearest alone: of many that are alike, not all
        pairs are here (`has_more_pairs`).
        """
        pairs: dict[tuple[int, int], float] = {}
        for row, others, values in self._neighbours(CANDIDATES, progress):
            for index, similarity in zip(others, values, strict=True):
                if similarity >= least:
                    pairs[min(row, index), max(row, index)] = similarity
        ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        return [Alike(first=a, second=b, similarity=s) for (a, b), s in ordered]

    def outliers(
        self, count: int, neighbours: int = OUTLIER_NEIGHBOURS, progress: Progress | None = None
    ) -> list[Alike]:
        """The images least similar to their nearest ones, with the nearest as `second`.

        `similarity` is the mean over the nearest `neighbours`, as in Ramaswamy et al., "Efficient
        algorithms for mining outliers" (2000), who take the distance to the last of them.
        """
        found = [
            Alike(first=row, second=others[0], similarity=sum(values) / len(values))
            for row, others, values in self._neighbours(neighbours, progress)
        ]
        return sorted(found, key=lambda alike: (alike.similarity, alike.first))[:count]

    def _neighbours(
        self, count: int, progress: Progress | None
    ) -> "list[tuple[int, list[int], list[float]]]":
        """(row, nearest other rows, their similarities) of every image."""
        total = len(self.directions)
        found = []
        for start in range(0, total, ROWS):
            part = self.directions[start : start + ROWS]
            values, indices = nearest(part, self.directions, min(count + 1, total))
            for offset, (some, others) in enumerate(
                zip(values.tolist(), indices.tolist(), strict=True)
            ):
                row = start + offset
                kept = [(o, v) for o, v in zip(others, some, strict=True) if o != row][:count]
                found.append((row, [o for o, _ in kept], [v for _, v in kept]))
            if progress is not None:
                progress(min(start + ROWS, total), total)
        return found


def has_more_pairs(space: FeatureSpace, candidates: Sequence[Alike]) -> bool:
    """Whether more pairs than `similar_pairs` gave may be as similar.

    That is so where all nearest images of one are similar to it, and there are others.
    """
    pairs = Counter(row for pair in candidates for row in (pair.first, pair.second))
    others = len(space.features.names) - 1
    return others > CANDIDATES and max(pairs.values(), default=0) >= CANDIDATES


def near_duplicates(
    space: FeatureSpace,
    source: ImageSource,
    preprocess: Preprocess,
    *,
    most: int = MOST_PAIRS,
    similarity: float = DUPLICATE_SIMILARITY,
    pixels: float = DUPLICATE_PIXELS,
    candidates: Sequence[Alike] | None = None,
    progress: Progress | None = None,
) -> list[Alike]:
    """Pairs of images that are alike by features and by their pixels, most similar first.

    `source` are the images that the features of `space` are of. Of the `most` most similar
    candidates those stay whose pixels differ by at most `pixels` (root mean square, as a share of
    the range that `pictures` shows). Candidates are `similar_pairs` of at least `similarity`. Where
    there are more than `most`, or `has_more_pairs`, these may not be all: that is told in the log.
    Who has the candidates already, and so their number, gives them, and nothing is told.
    """
    if candidates is None:
        candidates = space.similar_pairs(similarity, progress)
        _tell_left_out(space, candidates, most)
    compared = candidates[:most]
    wanted = sorted({row for pair in compared for row in (pair.first, pair.second)})
    shown = dict(zip(wanted, pictures(source, space.features, preprocess, wanted), strict=True))
    found = []
    for pair in compared:
        difference = shown[pair.first] - shown[pair.second]
        apart = float(difference.square().mean().sqrt())
        if apart <= pixels:
            found.append(
                Alike(
                    first=pair.first, second=pair.second, similarity=pair.similarity, pixels=apart
                )
            )
    return found


def _tell_left_out(space: FeatureSpace, candidates: Sequence[Alike], most: int) -> None:
    if len(candidates) > most:
        logger.warning(
            "near-duplicates are looked for among the %s most similar of %s candidate pairs alone",
            f"{most:,}", f"{len(candidates):,}",
        )  # fmt: skip
    if has_more_pairs(space, candidates):
        logger.warning(
            "each image was compared with its %d nearest alone: there may be more near-duplicates",
            CANDIDATES,
        )


def pictures(
    source: ImageSource, features: Features, preprocess: Preprocess, rows: Sequence[int]
) -> list[Tensor]:
    """Images (C, H, W), as the model gets them, of rows of features, for drawing.

    They are in [0, 1] over one range: that of the preprocessing, wider where an image leaves it.
    """
    if not rows:
        return []
    places = {source.name(index): index for index in range(len(source))}
    chosen = subset(source, [places[features.names[row]] for row in rows])
    batches = prepared_batches(chosen, preprocess, batch_size=64, broken=[])
    return list(displayed(torch.cat([batch.images for batch in batches]), preprocess))
