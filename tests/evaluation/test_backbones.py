"""One table of kinds: a family unknown here is loaded, measured and told of by its row alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crate_mae import build_model, save_model
from crate_mae.cli import main
from crate_mae.evaluation.backbones import (
    KINDS,
    Kind,
    as_classifier,
    build_classifier,
    load_backbone,
    load_masked_autoencoder,
    random_baseline,
    save_backbone,
)
from crate_mae.evaluation.feature_files import load_features
from crate_mae.models.config import ModelConfig, Preprocess


class Averages(nn.Module):
    """A toy: the mean colour of every patch, pushed through one matrix a layer."""

    kind: ClassVar[str] = "averages"
    match: ClassVar[None] = None

    def __init__(self, config: ModelConfig, preprocess: Preprocess) -> None:
        super().__init__()
        self.config, self.preprocess = config, preprocess
        self.first = nn.Linear(config.channels, config.dim)
        self.rest = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.depth))

    def encode(self, images: Tensor) -> Tensor:
        return self.layer_tokens(images, (None,))[None]

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None]
    ) -> dict[int | None, Tensor]:
        patches = nn.functional.avg_pool2d(images, self.config.patch_hw).flatten(2).mT
        tokens = self.first(patches)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        found: dict[int | None, Tensor] = {0: tokens}
        for number, layer in enumerate(self.rest, 1):
            tokens = found[number] = layer(tokens).tanh()
        found[None] = tokens
        return {layer: found[layer] for layer in layers}

    def untrained(self, seed: int) -> "Averages":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Averages(self.config, self.preprocess)


def load_averages(folder: Path, described: dict[str, Any]) -> Averages:
    preprocess = Preprocess.from_dict(described["preprocess"])
    model = Averages(ModelConfig.from_dict(described["config"]), preprocess)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def save_averages(
    model: Averages,
    folder: str | Path,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=overwrite)
    save_file(dict(model.state_dict() if state is None else state), folder / "model.safetensors")
    facts = {
        "model": model.kind,
        "config": model.config.to_dict(),
        "preprocess": model.preprocess.to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def averages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Averages, Path]:
    """A toy model whose kind is known for the length of a test, and its folder."""
    kind = Kind(load=load_averages, save=save_averages, role="autoencoder")
    monkeypatch.setitem(KINDS, Averages.kind, kind)
    config = ModelConfig(
        image_size=8, patch_size=2, channels=1, dim=8, depth=2, num_heads=2, decoder_num_heads=2
    )
    torch.manual_seed(0)
    model = Averages(config, Preprocess(size=(8, 8), channels=1, mean=(0.3,), std=(0.4,)))
    return model, save_backbone(model, tmp_path / "averages")


def test_a_registered_family_loads_and_has_a_random_baseline(
    averages: tuple[Averages, Path],
) -> None:
    model, folder = averages
    loaded, sha256 = load_backbone(folder)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.encode(images), model.encode(images))
    assert len(sha256) == 64
    assert as_classifier(loaded) is None
    fresh = random_baseline(loaded, 5)
    assert not torch.equal(fresh.encode(images), model.encode(images))
    assert torch.equal(fresh.encode(images), random_baseline(loaded, 5).encode(images))


def test_a_registered_family_goes_through_the_verbs(
    averages: tuple[Averages, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = averages
    out = tmp_path / "features.safetensors"
    assert main(["extract", str(folder), "digits", "--limit", "20", "--out", str(out)]) == 0
    assert load_features(out).values.shape == (20, 8)
    few = ["--limit", "120", "--test-limit", "60"]
    for verb in ("probe", "knn"):
        results = tmp_path / f"{verb}.json"
        words = [verb, str(folder), "digits", *few, "--json", str(results)]
        assert main(words) == 0
        rows = json.loads(results.read_text())["rows"]
        assert [row["dim"] for row in rows] == [8, 8, 64]  # model, random baseline, raw pixels
        assert all(0 < row["accuracy"] <= 1 for row in rows)
    capsys.readouterr()
    assert main(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "averages" in printed
    assert f"{sum(p.numel() for p in model.parameters()):,}" in printed


def test_families_without_a_classifier_are_refused_for_one(
    averages: tuple[Averages, Path],
) -> None:
    model, _ = averages
    with pytest.raises(ValueError, match="no classifier on a model of kind 'averages'"):
        build_classifier(model.config, origin=model, seed=0, num_classes=2)


def test_unknown_kinds_are_named_with_the_known_ones(tmp_path: Path) -> None:
    folder = save_model(build_model("debug"), tmp_path / "weights")
    described = json.loads((folder / "config.json").read_text())
    for change, kind in (({"model": "Crate"}, "'Crate'"), ({"model_type": "bert"}, "'bert'")):
        (folder / "config.json").write_text(json.dumps({**described, **change}))
        with pytest.raises(ValueError, match=f"of kind {kind}; known are CrateMAE, "):
            load_backbone(folder)


def test_a_classifier_completes_nothing(tmp_path: Path) -> None:
    model = build_model("debug")
    classifier = build_classifier(model.config, origin=model, seed=0, num_classes=3)
    folder = save_backbone(classifier, tmp_path / "classes")
    assert as_classifier(load_backbone(folder)[0]) is not None
    with pytest.raises(ValueError, match="holds a classifier, which has no decoder"):
        load_masked_autoencoder(folder)
