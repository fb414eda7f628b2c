"""What weights alone cannot rebuild is refused at saving, with or without parameters of its own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crate_mae import build_model, load_model, save_model
from crate_mae.models.ista import ISTA


class Doubled(ISTA):
    """A sparse step of one's own, without a parameter that the published one lacks."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return twice what the published step gives."""
        found: Tensor = super().forward(tokens)
        return 2 * found


def test_a_layer_swapped_without_new_parameters_is_refused(tmp_path: Path) -> None:
    model = build_model("debug").eval()
    images = torch.rand(1, 3, 32, 32)
    before = model.encode(images)
    part = model.encoder.layers[0].ista
    part.__class__ = Doubled
    assert not torch.allclose(model.encode(images), before), "the swap computes something else"
    with pytest.raises(ValueError, match=r"Doubled.*ISTA in its place"):
        save_model(model, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
    part.__class__ = ISTA
    loaded = load_model(save_model(model, tmp_path / "weights"))
    torch.testing.assert_close(loaded.encode(images), before)


def test_a_part_that_is_swapped_deep_inside_is_named(tmp_path: Path) -> None:
    model = build_model("debug")
    model.decoder_norm = nn.Sequential(nn.LayerNorm(model.config.dim, eps=1e-6))  # type: ignore[assignment]
    with pytest.raises(ValueError, match="decoder_norm"):
        save_model(model, tmp_path / "weights")
