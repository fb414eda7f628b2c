"""Statistics that take in one batch after another in constant memory; float64 throughout."""

import torch
from torch import Tensor


class RunningMean:
    """Mean and unbiased standard deviation of numbers, merged batch by batch.

    Batches are merged by their means and squared deviations, so that no large sums are subtracted.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        """Take in values (B, ...): statistics are over B, for each of the rest."""
        batch = values.detach().double().cpu()
        mean = batch.mean(dim=0)
        squares = (batch - mean).square().sum(dim=0)
        before, self.count = self.count, self.count + len(batch)
        gap = mean - self.mean
        self.mean = self.mean + gap * (len(batch) / self.count)
        self._squares = self._squares + squares + gap.square() * before * len(batch) / self.count

    @property
    def std(self) -> Tensor | None:
        """The unbiased standard deviation; None for fewer than two values."""
        return (self._squares / (self.count - 1)).sqrt() if self.count > 1 else None


class Agreement:
    """How well one set of token features X matches another, Y, from streamed second moments.

    Memory is three d x d matrices, whatever the number of tokens.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._sums = torch.zeros(2, dim, dtype=torch.float64)
        self._moments = torch.zeros(3, dim, dim, dtype=torch.float64)  # X^T X, Y^T Y, X^T Y

    def update(self, found: Tensor, expected: Tensor) -> None:
        """Take in tokens X = `found` and Y = `expected`, both (..., d)."""
        X, Y = (t.detach().double().cpu().flatten(0, -2) for t in (found, expected))
        self.count += len(X)
        self._sums += torch.stack([X.sum(dim=0), Y.sum(dim=0)])
        self._moments += torch.stack([X.T @ X, Y.T @ Y, X.T @ Y])

    def linear_cka(self) -> float:
        """Linear centred kernel alignment: 0 to 1, 1 when one is a rotated and scaled other.

        |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred features; 0 when one of them never changes.
        Source: Kornblith et al., "Similarity of neural network representations revisited" (2019).
        """
        means = self._sums / self.count
        pairs = ((0, 0), (1, 1), (0, 1))
        xx, yy, xy = (
            moment - self.count * torch.outer(means[i], means[j])
            for moment, (i, j) in zip(self._moments, pairs, strict=True)
        )
        # What rounding leaves of constant features is no agreement.
        floor = 1e-12 * self._moments[:2].norm(dim=(-2, -1))
        if float(xx.norm()) <= float(floor[0]) or float(yy.norm()) <= float(floor[1]):
            return 0.0
        return float(xy.square().sum() / (xx.norm() * yy.norm()))

    def relative_error(self) -> float:
        """|X - Y|_F / |Y|_F; infinite when Y is zero and X is not."""
        xx, yy, xy = self._traces()
        gap = max(0.0, xx - 2 * xy + yy)
        if yy == 0:
            return 0.0 if xx == 0 else float("inf")
        return float((gap / yy) ** 0.5)

    def scaled_error(self) -> float:
        """The relative error that is left when X is scaled by the best single factor: 0 to 1."""
        xx, yy, xy = self._traces()
        if xx == 0 or yy == 0:
            return 0.0 if xx == yy else 1.0
        return float(max(0.0, 1 - xy * xy / (xx * yy)) ** 0.5)

    def _traces(self) -> list[float]:
        traces = self._moments.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        return [float(trace) for trace in traces]


class ClassMoments:
    """Counts (C,) and sums of f f^T (C, d, d) of labelled feature vectors, for rate reductions."""

    def __init__(self, num_classes: int, dim: int) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self.moments = torch.zeros(num_classes, dim, dim, dtype=torch.float64)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (B, d) with labels (B,), without those labelled below 0."""
        rows, labels = features.detach().double().cpu(), labels.cpu()
        for label in torch.unique(labels[labels >= 0]).tolist():
            members = rows[labels == label]
            self.counts[label] += len(members)
            self.moments[label] += members.T @ members

    @staticmethod
    def bytes_for(num_classes: int, dim: int) -> int:
        """Memory that so many classes of features so wide take."""
        return 8 * num_classes * (dim * dim + 1)
