"""The shipped models: whole, described, and able to do what their cards say."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae import CrateMAE, load_model, save_model
from crate_mae.batches.transforms import normalise, prepare
from crate_mae.cli import main
from crate_mae.evaluation.backbones import random_baseline
from crate_mae.models.config import ModelConfig
from crate_mae.models.loss import BaselineSums
from crate_mae.models.masks import draw_mask
from crate_mae.publish.package import build_package
from crate_mae.sources.photographs import photograph
from crate_mae.training.run_folder import load_settings
from crate_mae.weights import shipped
from crate_mae.weights.shipped import SHIPPED
from crate_mae.weights.weights_folder import local_weights_folder, weights_hash

CIFAR10 = [name for name in SHIPPED if name.startswith("cifar10")]
PHOTOS = [name for name in SHIPPED if name.startswith("photos")]
_PART = "the training images of CIFAR-10 as a JPEG copy (quality 75, halved chroma), without labels"
_PHOTOS = "50,000 training images of Tiny ImageNet, without labels"
ORIGINS = {
    **dict.fromkeys(CIFAR10, ("mit", "JPEG copy of CIFAR-10", _PART)),
    **dict.fromkeys(PHOTOS, ("cc-by-nc-4.0", "Tiny ImageNet", _PHOTOS)),
}
"""Licence, name of the data set and of its part, as each was pushed."""


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_whole_and_described(name: str) -> None:
    weights = SHIPPED[name]
    assert local_weights_folder(name) == weights.folder
    assert weights_hash(name) == weights.sha256
    card = weights.card
    assert weights.sha256 in card
    assert ORIGINS[name][0] in card.lower()
    model = load_model(name)
    count = sum(p.numel() for p in model.parameters())
    assert f"{count / 1e6:.2f} million parameters" in card
    size = sum(item.stat().st_size for item in weights.folder.iterdir())
    assert size < 8e6, "the package stays small"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_tells_what_a_user_must_know(name: str) -> None:
    card = SHIPPED[name].card
    for heading in ("The model", "How it was made", "What it reaches", "Licence"):
        assert f"## {heading}" in card
    assert re.search(r"commit (\| |`)[0-9a-f]{40}\+?( \||`)", card)
    assert re.search(r"[\d.]+% to [\d.]+%", card), "intervals"
    assert "**For**" in card
    assert "**Not for**" in card
    assert "seed" in card
    kept = json.loads((SHIPPED[name].folder / "metrics.json").read_text("utf-8"))
    assert kept["sha256"] == SHIPPED[name].sha256
    assert f"{kept['validation']['val/loss']:.4g}" in card
    for row in kept["rows"]:
        assert f"{row['accuracy']:.2%}" in card
    recipe = load_settings(SHIPPED[name].folder / "recipe.yaml")
    model = load_model(name)
    assert ModelConfig.from_dict(recipe["model"]) == model.config
    assert set(model.config.to_dict()) - set(recipe["model"]) <= ModelConfig.ADDED
    given = recipe["data"]["mean"]  # those of photographs measured their own
    assert given is None if name in PHOTOS else given == list(model.preprocess.mean)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_a_published_folder(name: str) -> None:
    """What lies in the package is what a push would send, byte for byte."""
    folder, package = SHIPPED[name].folder, build_package(name, name="ann/copy")
    assert set(package.files) == {path.name for path in folder.iterdir()}
    for file, content in package.files.items():
        sent = content if isinstance(content, bytes) else content.read_bytes()
        assert sent == (folder / file).read_bytes(), file


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_card_is_the_one_that_a_push_writes(name: str, tmp_path: Path) -> None:
    """From the metrics beside it and docs/cards: after a change, push writes it anew."""
    notes = Path(__file__).parents[2] / "docs" / "cards" / f"{name}.md"
    licence, dataset, part = ORIGINS[name]
    words = ["push", name, "--out", str(tmp_path / name), "--licence", licence]
    words += ["--data-name", part, "--dataset", dataset, "--notes", str(notes)]
    assert main(words) == 0
    assert (tmp_path / name / "README.md").read_text("utf-8") == SHIPPED[name].card


def masked_losses(model: CrateMAE, images: Tensor, ratio: float = 0.75) -> tuple[float, float]:
    """The model's loss under fixed masks, and that of the one best colour on the same pixels."""
    generator = torch.Generator().manual_seed(0)
    mask = draw_mask("random", model.config.grid, ratio, generator, batch=len(images))
    with torch.no_grad():
        loss = float(model(images, mask).loss)
    baseline = BaselineSums(3)
    baseline.update(model.target(images), mask)
    return loss, baseline.mean_colour()


def autoencoder(name: str) -> CrateMAE:
    model = load_model(name)
    assert isinstance(model, CrateMAE)
    return model


def crops_of(model: CrateMAE, name: str) -> Tensor:
    """Fifteen squares of a photograph, in rows of five, as the model takes them."""
    picture = photograph(name)
    squares = [
        picture[:, top : top + 213, left : left + 213]
        for top in (0, 107, 214)
        for left in (0, 107, 214, 320, 427)
    ]
    return prepare(squares, model.preprocess)


@pytest.mark.parametrize("name", CIFAR10)
def test_a_cifar10_model_completes_smooth_pictures(name: str) -> None:
    """Smooth coloured pictures, of which one quarter of the patches tells most of the rest."""
    model = autoencoder(name)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 3, 3, generator=generator)
    pixels = F.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=True).clamp(0, 1)
    loss, colour = masked_losses(model, normalise(pixels, model.preprocess))
    assert loss < 0.5 * colour


@pytest.mark.parametrize("photo", ["china", "flower"])
@pytest.mark.parametrize("name", CIFAR10)
def test_a_cifar10_model_completes_photographs(name: str, photo: str) -> None:
    """Far better than the best colour, than its random baseline, and than on scrambled pixels."""
    model = autoencoder(name)
    images = crops_of(model, photo)
    loss, colour = masked_losses(model, images)
    assert loss < 0.55 * colour
    twin = random_baseline(model, seed=0)
    assert isinstance(twin, CrateMAE)
    assert masked_losses(twin, images)[0] > colour > loss
    order = torch.randperm(32 * 32, generator=torch.Generator().manual_seed(1))
    scrambled = images.flatten(2)[..., order].view_as(images)
    assert masked_losses(model, scrambled)[0] > 1.5 * loss


@pytest.mark.parametrize("name", SHIPPED)
def test_fewer_visible_patches_are_harder(name: str) -> None:
    model = autoencoder(name)
    images = torch.cat([crops_of(model, "china"), crops_of(model, "flower")])
    losses = [masked_losses(model, images, ratio)[0] for ratio in (0.5, 0.75, 0.9)]
    assert losses == sorted(losses)
    assert losses[0] < 0.8 * losses[-1]


@pytest.mark.parametrize("name", SHIPPED)
def test_features_tell_two_photographs_apart_and_are_not_the_twins(name: str) -> None:
    """Squares of one photograph are nearer to each other than to those of the other."""
    model = autoencoder(name)
    images = torch.cat([crops_of(model, "china"), crops_of(model, "flower")])
    with torch.no_grad():
        found = model.encode(images)[:, 1:].mean(dim=1)
        twin = random_baseline(model, seed=0).encode(images)[:, 1:].mean(dim=1)
    assert found.isfinite().all()
    assert float((found - twin).norm() / twin.norm()) > 0.5
    distances = torch.cdist(found, found).fill_diagonal_(torch.inf)
    same = distances.argmin(dim=1).lt(15) == torch.arange(30).lt(15)
    assert same.float().mean() > 0.9


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crate_mae import build_model

    monkeypatch.chdir(tmp_path)
    save_model(build_model("debug"), "cifar10-small")
    assert load_model("cifar10-small").config.dim == 32


def test_the_weights_verb(capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "model.safetensors changed"),
        ("config.json", "config.json or preprocess.json changed"),
        ("preprocess.json", "config.json or preprocess.json changed"),
    ],
)
def test_verify_finds_a_damaged_copy(
    file: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One bit in the middle of any file, or the file gone."""
    for name, weights in SHIPPED.items():
        shutil.copytree(weights.folder, tmp_path / name)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert main(["weights", "verify"]) == 0
    content = bytearray((tmp_path / "cifar10-small" / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "cifar10-small" / file).write_bytes(content)
    assert main(["weights", "verify"]) == 1
    assert f"other content than was shipped: cifar10-small ({message})" in capsys.readouterr().err
    (tmp_path / "cifar10-small" / file).unlink()
    assert main(["weights", "verify", "cifar10-small"]) == 1
    assert f"{file} missing" in capsys.readouterr().err


def test_verify_compares_with_what_was_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(SHIPPED["cifar10-small"], sha256="0" * 64)
    monkeypatch.setitem(shipped.SHIPPED, "cifar10-small", changed)
    assert main(["weights", "verify"]) == 1


def test_an_unknown_name_hears_of_the_shipped_ones() -> None:
    names = ", ".join(SHIPPED)
    with pytest.raises(FileNotFoundError, match=rf"shipped model \({names}\)"):
        local_weights_folder("cifar10-large")
