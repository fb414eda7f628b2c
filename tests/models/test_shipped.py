"""The shipped models: whole, described, and able to do what their cards say."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from crate_mae import CrateMAE, load_model, save_model
from crate_mae.cli import main
from crate_mae.data.transforms import normalise
from crate_mae.evaluation.reconstruction import BaselineSums
from crate_mae.models import shipped
from crate_mae.models.masks import draw_mask
from crate_mae.models.shipped import SHIPPED, ShippedWeights
from crate_mae.models.weights import weights_folder, weights_hash


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_whole_and_described(name: str) -> None:
    weights = SHIPPED[name]
    assert weights_folder(name) == weights.folder
    assert weights_hash(name) == weights.sha256
    card = weights.card
    assert weights.sha256 in card
    assert "MIT" in card
    model = load_model(name)
    count = sum(p.numel() for p in model.parameters())
    assert f"{count / 1e6:.2f} million parameters" in card
    size = sum(item.stat().st_size for item in weights.folder.iterdir())
    assert size < 8e6, "the package stays small"


def test_the_cifar10_model_completes_smooth_pictures() -> None:
    """Smooth coloured pictures, of which one quarter of the patches tells most of the rest."""
    model = load_model("cifar10-small")
    assert isinstance(model, CrateMAE)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 3, 3, generator=generator)
    pixels = F.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=True).clamp(0, 1)
    images = normalise(pixels, model.preprocess)
    mask = draw_mask("random", model.config.grid, 0.75, generator, batch=16)
    with torch.no_grad():
        loss = float(model(images, mask).loss)
    baseline = BaselineSums(3)
    baseline.update(model.target(images), mask)
    assert loss < 0.5 * baseline.mean_colour()


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crate_mae import build_model

    monkeypatch.chdir(tmp_path)
    save_model(build_model("debug"), "cifar10-small")
    assert load_model("cifar10-small").config.dim == 32


def test_the_weights_verb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["weights"]) == 0
    assert "cifar10-small" in capsys.readouterr().out
    assert main(["weights", "card", "cifar10-small"]) == 0
    assert "# cifar10-small" in capsys.readouterr().out
    assert main(["weights", "verify"]) == 0
    assert "whole" in capsys.readouterr().out
    for words, message in (
        (["weights", "card"], "name the model"),
        (["weights", "verify", "cifar10-smal"], "did you mean 'cifar10-small'"),
    ):
        assert main(words) == 1
        assert message in capsys.readouterr().err
    changed = ShippedWeights(name="cifar10-small", sha256="0" * 64, summary="")
    monkeypatch.setitem(shipped.SHIPPED, "cifar10-small", changed)
    assert main(["weights", "verify"]) == 1
    assert "other content than was shipped: cifar10-small" in capsys.readouterr().err


def test_an_unknown_name_hears_of_the_shipped_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"shipped model \(cifar10-small\)"):
        weights_folder("cifar10-large")
