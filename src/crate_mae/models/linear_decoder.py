"""The plainest segmentation head: one linear map from a patch's token to the scores of classes."""

from typing import Any

from torch import Tensor, nn


class LinearDecoder(nn.Module):
    """Scores of classes for every patch, from its own features alone.

    What a linear probe is to a classifier: whatever it finds lay in single tokens already.
    """

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_classes", num_classes)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        self.sizes: dict[str, Any] = {"dim": dim, "num_classes": num_classes}
        """The arguments it was made with, by name."""
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class scores (B, C, rows, columns) of patch features (B, L, d) on a grid.

        Features are those after the encoder's norm, without the class token. Raises ValueError
        where their number is not that of the grid.
        """
        check_fills(features, grid)
        scores: Tensor = self.linear(features)
        return scores.mT.reshape(features.shape[0], -1, *grid)


def check_fills(features: Tensor, grid: tuple[int, int]) -> None:
    """Raise ValueError unless patch features (B, L, d) are one for each place of a grid."""
    if features.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"{features.shape[1]} patch features do not fill a grid of {grid[0]}x{grid[1]};"
            " leave out the class token"
        )
