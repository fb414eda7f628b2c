"""Weights that come with the package: small, made by its own recipes, no network needed."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "shipped"
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class ShippedWeights:
    """One shipped model."""

    name: str
    sha256: str
    """Of its tensor file, as it was when the model was measured."""
    summary: str

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return FOLDER / self.name

    @property
    def card(self) -> str:
        """Its model card: recipe, data, numbers, limits, licence."""
        return (self.folder / CARD).read_text(encoding="utf-8")


SHIPPED = {
    weights.name: weights
    for weights in (
        ShippedWeights(
            name="cifar10-small",
            sha256="4c8e7d74282b50c397b0591c5b69e163ea357e8b3ae9fd3528f733f35fccd790",
            summary="CRATE-MAE, 32 px, width 128, 4 + 4 layers, 15 epochs of CIFAR-10",
        ),
    )
}


def shipped_folder(name: str | Path) -> Path | None:
    """The folder of a shipped model, or None for another name."""
    weights = SHIPPED.get(str(name))
    return None if weights is None else weights.folder
