"""One weights folder, read by this package, by timm and by transformers: the same features."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import VARIANTS, tiny
from PIL import Image
from torch import Tensor

from crate_mae.batches.transforms import prepare
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.weights.one_folder import for_every_library, timm_cfg
from crate_mae.weights.shipped import SHIPPED
from crate_mae.weights.weights_folder import load_model, save_model

FAR = 1e-5
"""How far features of two libraries may lie apart."""


def sizes(config: ModelConfig) -> list[tuple[int, int]]:
    """The model's own image size and one that is wider and not square."""
    (height, width), (rows, columns) = config.image_hw, config.patch_hw
    return [(height, width), (height + rows, width + 3 * columns)]


def images(config: ModelConfig, size: tuple[int, int]) -> Tensor:
    """Three images of a size."""
    return torch.randn(3, config.channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=VARIANTS, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[CrateMAE, Path]:
    """A model of each variant, with fresh weights, and its folder."""
    torch.manual_seed(0)
    model = CrateMAE(VARIANTS[request.param]).eval()
    return model, save_model(model, tmp_path / "weights")


def test_timm_gives_the_same_features(saved: tuple[CrateMAE, Path]) -> None:
    timm = pytest.importorskip("timm")
    import crate_mae.timm

    model, folder = saved
    for size in sizes(model.config):
        other = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
        assert isinstance(other, crate_mae.timm.CrateTransformer)
        batch = images(model.config, size)
        with torch.inference_mode():
            assert (other.forward_features(batch) - model.encode(batch)).abs().max() <= FAR


def test_transformers_gives_the_same_features_and_loss(saved: tuple[CrateMAE, Path]) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoModel, AutoModelForPreTraining

    import crate_mae.transformers  # noqa: F401

    model, folder = saved
    other = AutoModel.from_pretrained(folder)
    pretraining = AutoModelForPreTraining.from_pretrained(folder)
    for size in sizes(model.config):
        batch = images(model.config, size)
        with torch.inference_mode():
            found = other(batch).last_hidden_state
            assert (found - model.encode(batch)).abs().max() <= FAR
            ours = model(batch, mask_ratio=0.75, generator=torch.Generator().manual_seed(2))
            theirs = pretraining(batch, bool_masked_pos=ours.mask)
        assert abs(float(theirs.loss - ours.loss)) <= FAR
        assert (theirs.logits - ours.prediction).abs().max() <= FAR


@pytest.mark.parametrize("pool", ["cls", "mean", "mean-all"])
def test_classifiers_give_the_same_scores_and_names(pool: Any, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    pytest.importorskip("transformers")
    from transformers import AutoModelForImageClassification

    import crate_mae.timm
    import crate_mae.transformers  # noqa: F401

    torch.manual_seed(0)
    names = ("cat", "dog", "sled")
    model = CrateClassifier(tiny(), num_classes=3, pool=pool, class_names=names).eval()
    folder = save_model(model, tmp_path / "weights")
    batch = images(model.config, model.config.image_hw)
    in_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    in_transformers = AutoModelForImageClassification.from_pretrained(folder)
    with torch.inference_mode():
        scores = model(batch)
        assert (in_timm(batch) - scores).abs().max() <= FAR
        assert (in_transformers(batch).logits - scores).abs().max() <= FAR
    assert in_transformers.config.id2label == dict(enumerate(names))
    assert in_timm.pretrained_cfg["label_names"] == list(names)


@pytest.mark.parametrize("pool", ["cls", "mean", "mean-all"])
def test_a_classifier_for_other_sizes_than_its_configurations_is_fed_its_own(
    pool: Any, tmp_path: Path
) -> None:
    """As fine-tuning at another `image_size` leaves it: positions of 8 x 12, images of 16 x 8."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("transformers")
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    import crate_mae.timm
    import crate_mae.transformers  # noqa: F401

    torch.manual_seed(0)
    model = CrateClassifier(tiny(), num_classes=3, pool=pool).eval()
    model.preprocess = Preprocess(size=(16, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    folder = save_model(model, tmp_path / "weights")
    assert load_model(folder).preprocess.size == (16, 8)
    pixels = torch.randint(
        256, (3, 16, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    )
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    in_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    feeding = timm.data.resolve_model_data_config(in_timm)
    assert list(feeding["input_size"]) == [3, 16, 8]
    assert in_timm.patch_embed.img_size == (16, 8)
    fed = timm.data.create_transform(**feeding, is_training=False)(picture)[None]
    processed = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
    in_transformers = AutoModelForImageClassification.from_pretrained(folder)
    with torch.inference_mode():
        scores = model(prepare([pixels], model.preprocess))
        assert (in_timm(fed) - scores).abs().max() <= FAR
        assert (in_transformers(**processed).logits - scores).abs().max() <= FAR


@pytest.mark.parametrize("pool", ["mean-std", "layers"])
def test_heads_on_wide_pools_go_to_transformers_and_timm_says_why_not(
    pool: Any, tmp_path: Path
) -> None:
    timm = pytest.importorskip("timm")
    pytest.importorskip("transformers")
    from transformers import AutoModel, AutoModelForImageClassification

    import crate_mae.timm
    import crate_mae.transformers  # noqa: F401

    torch.manual_seed(0)
    model = CrateClassifier(tiny(depth=5), num_classes=3, pool=pool).eval()
    folder = save_model(model, tmp_path / "weights")
    batch = images(model.config, model.config.image_hw)
    classifier = AutoModelForImageClassification.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        scores = model(batch)
        assert torch.equal(load_model(folder)(batch), scores)
        assert (classifier(batch).logits - scores).abs().max() <= FAR
        found = encoder(batch)
        assert (model.head(found.pooler_output) - scores).abs().max() <= FAR
        assert (found.last_hidden_state - model.encode(batch)).abs().max() <= FAR
    with pytest.raises(ValueError, match=rf"no pool '{pool}': load the weights with crate_mae"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    features = timm.create_model(
        f"local-dir:{folder}", pretrained=True, num_classes=0, global_pool="avg"
    ).eval()
    with torch.inference_mode():
        expected = model.encode(batch)[:, 1:].mean(dim=1)
        assert (features(batch) - expected).abs().max() <= FAR


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_models_are_written_for_every_library(name: str, tmp_path: Path) -> None:
    folder = save_model(load_model(name), tmp_path / "weights")
    described = json.loads((folder / "config.json").read_text())
    assert described["model_type"] == described["architecture"] == "crate_mae"
    own = json.loads((SHIPPED[name].folder / "config.json").read_text())
    old = own.pop("config")
    assert {key: described[key] for key in own} == own
    assert {key: described["config"][key] for key in old} == old
    assert described["config"].keys() - old.keys() <= ModelConfig.ADDED
    assert load_model(folder).config == load_model(name).config


def test_the_three_readers_are_told_the_same_sizes() -> None:
    config = tiny(image_size=(8, 18), patch_size=(4, 6), channels=5)
    prepared = Preprocess.identity(config)
    described = {"format": "crate-mae/1", "model": "CrateMAE", "config": config.to_dict()}
    whole = for_every_library(described, config, prepared)
    assert whole["hidden_size"] == whole["num_features"] == whole["config"]["dim"] == config.dim
    assert whole["pretrained_cfg"]["input_size"] == [5, 8, 18]
    assert whole["size"] == {"height": 8, "width": 18}
    assert ModelConfig.from_dict(whole["model_args"]["config"]) == config
    assert timm_cfg(config, prepared, num_classes=7)["num_classes"] == 7
    larger = for_every_library(described, config, replace(prepared, size=(16, 6)))
    assert larger["pretrained_cfg"]["input_size"] == [5, 16, 6]
    assert larger["size"] == {"height": 16, "width": 6}
    assert larger["config"] == whole["config"], "the weights are of the same configuration"
