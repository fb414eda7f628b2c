"""What this family has beyond transformers' common tests: masks, backbones, fine-tuning."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import FAMILY, VARIANTS, gap, make, tiny
from torch import Tensor

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.field_names import from_transformers, to_transformers
from crate_mae.weights.weights_folder import save_model

transformers = pytest.importorskip("transformers")
ours = pytest.importorskip("crate_mae.transformers")


def configured(**changed: Any) -> Any:
    """transformers' configuration of the tiny model."""
    return ours.CrateMAEConfig(**to_transformers(tiny()) | changed)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_field_is_the_same_in_both_configurations(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    assert from_transformers(to_transformers(config)) == config
    ours.CrateMAEConfig(**to_transformers(config)).save_pretrained(tmp_path)
    assert ours.CrateMAEConfig.from_pretrained(tmp_path).to_model_config() == config


def test_values_that_do_not_fit_are_refused_with_ours_words() -> None:
    with pytest.raises(ValueError, match="num_heads 5 does not divide dim 12"):
        configured(num_attention_heads=5)
    with pytest.raises(ValueError, match="pool must be one of cls, mean"):
        configured(pool="max")


@pytest.mark.parametrize("place", ["encoder", "decoder"])
def test_the_lowest_noise_is_kept(place: str) -> None:
    model = ours.CrateMAEForPreTraining(configured(mask_tokens=place, mask_ratio=0.5)).eval()
    noise = torch.tensor([[3.0, 1.0, 2.0, 6.0, 5.0, 4.0]])
    found = model(torch.randn(1, 3, 8, 12), noise=noise)
    assert found.mask.tolist() == [[0, 0, 0, 1, 1, 1]]
    again = model(torch.randn(1, 3, 8, 12), bool_masked_pos=found.mask.bool())
    assert torch.equal(again.mask, found.mask)


def test_a_backbone_gives_the_tokens_of_layers_as_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CrateMAE(tiny()).eval()
    folder = save_model(model, tmp_path / "weights")
    images = torch.randn(2, 3, 8, 12)
    backbone = ours.CrateMAEBackbone.from_pretrained(
        folder, out_features=["stem", "stage1", "stage2"], apply_layernorm=False
    )
    with torch.inference_mode():
        maps = backbone(images).feature_maps
        expected = model.layer_tokens(images, [0, 1, 2])
    for layer, found in enumerate(maps):
        tokens = expected[layer][:, 1:].transpose(1, 2).reshape(2, 12, 2, 3)
        assert (found - tokens).abs().max() <= 1e-6


def test_weights_in_eager_attention_are_those_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CrateMAE(tiny()).eval()
    folder = save_model(model, tmp_path / "weights")
    other = ours.CrateMAEModel.from_pretrained(folder, attn_implementation="eager")
    images = torch.randn(2, 3, 8, 12)
    with torch.inference_mode():
        found = other(images, output_attentions=True).attentions
        expected = model.attention(images, [0, 1])
    assert len(found) == 2
    for layer, weights in enumerate(found):
        assert (weights - expected[layer]).abs().max() <= 1e-6


def test_initial_values_are_of_the_kind_that_our_own_models_have() -> None:
    config = tiny(dim=96, num_heads=3, decoder_num_heads=2)
    torch.manual_seed(0)
    own = CrateMAE(config).state_dict()
    other = ours.CrateMAEForPreTraining(ours.CrateMAEConfig(**to_transformers(config))).state_dict()
    assert own.keys() == other.keys()
    for key, value in own.items():
        assert float(other[key].std()) == pytest.approx(float(value.std()), rel=0.35, abs=1e-6)
        assert torch.isfinite(other[key]).all()


def test_the_trainer_of_transformers_fine_tunes_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save_model(CrateMAE(tiny()), tmp_path / "weights")
    model = ours.CrateMAEForImageClassification.from_pretrained(folder, num_labels=2)
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(32) % 2
    pixels = torch.randn(32, 3, 8, 12, generator=generator) + 2 * labels.view(-1, 1, 1, 1)
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), num_train_epochs=15, per_device_train_batch_size=8,
        learning_rate=1e-2, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model=model, args=settings, train_dataset=rows).train()
    with torch.inference_mode():
        right = (model.eval()(pixels).logits.argmax(dim=1) == labels).float().mean()
    assert right > 0.9


RESIZED = {
    "published": VARIANTS["published"],
    "visible only": VARIANTS["visible only"],
    "learned positions": FAMILY["crate"],
    "learned, visible only": FAMILY["tost, tied, visible only"],
}
"""Models of 8 x 12 pixels whose positions enter in different ways."""
SIZES: list[Any] = [16, (16, 8), [4, 20]]
"""Square, high and wide, in the three ways that a size is written."""
FAR = 1e-5
"""How far our numbers and those of transformers' model may lie apart."""


def batch_of(size: Any) -> Tensor:
    """Two images of a size."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(4))


def plain(size: Any) -> Any:
    """A size as JSON has it."""
    return size if isinstance(size, int) else list(size)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", RESIZED)
@torch.inference_mode()
def test_an_encoder_loaded_at_another_size_gives_our_features(
    name: str, size: Any, tmp_path: Path
) -> None:
    model, batch = make(RESIZED[name]).eval(), batch_of(size)
    folder, expected = save_model(model, tmp_path / "weights"), model.encode(batch)
    resized = transformers.AutoModel.from_pretrained(folder, image_size=size)
    assert gap(resized(batch).last_hidden_state, expected) <= FAR
    if RESIZED[name].positions == "sincos":  # the test would see positions that are not mapped
        other = {"image_size": size, "trained_image_size": None}
        unmapped = transformers.AutoModel.from_pretrained(folder, **other)
        assert gap(unmapped(batch).last_hidden_state, expected) > 0.1
    resized.save_pretrained(tmp_path / "again")
    for told in ({}, {"image_size": 24}, {"image_size": [8, 12]}):
        again = transformers.AutoModel.from_pretrained(tmp_path / "again", **told)
        assert gap(again(batch).last_hidden_state, expected) <= FAR


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", RESIZED)
@torch.inference_mode()
def test_a_masked_model_loaded_at_another_size_predicts_what_ours_does(
    name: str, size: Any, tmp_path: Path
) -> None:
    model, batch = make(RESIZED[name]).eval(), batch_of(size)
    folder = save_model(model, tmp_path / "weights")
    expected = model(batch, mask_ratio=0.75, generator=torch.Generator().manual_seed(2))
    auto = transformers.AutoModelForPreTraining
    resized = auto.from_pretrained(folder, image_size=size)
    resized.save_pretrained(tmp_path / "again")
    for other in (resized, auto.from_pretrained(tmp_path / "again")):
        found = other(batch, bool_masked_pos=expected.mask)
        assert gap(found.logits, expected.prediction) <= FAR
        assert gap(found.loss, expected.loss) <= FAR
    if RESIZED[name].positions == "sincos":
        unmapped = auto.from_pretrained(folder, image_size=size, trained_image_size=None)
        found = unmapped(batch, bool_masked_pos=expected.mask)
        assert gap(found.logits, expected.prediction) > 0.1


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["published", "learned positions"])
@torch.inference_mode()
def test_a_classifier_loaded_at_another_size_gives_our_scores(
    name: str, size: Any, tmp_path: Path
) -> None:
    batch = batch_of(size)
    model = CrateClassifier(RESIZED[name], num_classes=3).eval()
    model.encoder.load_state_dict(make(RESIZED[name]).encoder.state_dict())
    model.head.weight.normal_(generator=torch.Generator().manual_seed(5))
    folder, expected = save_model(model, tmp_path / "weights"), model(batch)
    auto = transformers.AutoModelForImageClassification
    resized = auto.from_pretrained(folder, image_size=size)
    resized.save_pretrained(tmp_path / "again")
    for other in (resized, auto.from_pretrained(tmp_path / "again")):
        assert gap(other(batch).logits, expected) <= FAR
    if name == "published":
        unmapped = auto.from_pretrained(folder, image_size=size, trained_image_size=None)
        assert gap(unmapped(batch).logits, expected) > 0.01


@torch.inference_mode()
def test_a_backbone_and_a_configuration_that_is_changed_keep_the_trained_extent(
    tmp_path: Path,
) -> None:
    model, batch = make(tiny()).eval(), batch_of(16)
    folder = save_model(model, tmp_path / "weights")
    backbone = ours.CrateMAEBackbone.from_pretrained(folder, image_size=16)
    maps = model.encode(batch)[:, 1:].transpose(1, 2).reshape(2, 12, 4, 4)
    assert gap(backbone(batch).feature_maps[-1], maps) <= FAR
    config = transformers.AutoConfig.from_pretrained(folder)
    config.image_size = 16
    changed = transformers.AutoModel.from_pretrained(folder, config=config)
    assert gap(changed(batch).last_hidden_state, model.encode(batch)) <= FAR


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_is_saved_names_the_trained_size_where_it_is_another(
    size: Any, tmp_path: Path
) -> None:
    folder = save_model(make(tiny()), tmp_path / "weights")
    own, resized, again, back = (tmp_path / name for name in ("own", "resized", "again", "back"))
    auto = transformers.AutoModel
    auto.from_pretrained(folder).save_pretrained(own)
    auto.from_pretrained(folder, image_size=size).save_pretrained(resized)
    auto.from_pretrained(resized).save_pretrained(again)
    auto.from_pretrained(again, image_size=[8, 12]).save_pretrained(back)
    files = {path: (path / "config.json").read_text() for path in (own, resized, again, back)}
    assert "trained_image_size" not in files[own]
    told = json.loads(files[resized])
    assert (told["image_size"], told["trained_image_size"]) == (plain(size), [8, 12])
    assert files[again] == files[resized]
    assert files[back] == files[own]


@torch.inference_mode()
def test_fresh_models_are_for_the_size_of_their_configuration(tmp_path: Path) -> None:
    fresh = ours.CrateMAEModel(configured(image_size=16)).eval()
    assert fresh.encoder.config.image_size == (16, 16)
    assert "trained_image_size" not in fresh.config.to_dict()
    own = CrateMAE(tiny(image_size=16)).eval()
    own.encoder.load_state_dict(fresh.encoder.state_dict())
    batch = batch_of(16)
    assert gap(fresh(batch).last_hidden_state, own.encode(batch)) <= FAR
    fresh.save_pretrained(tmp_path)
    read = ours.CrateMAEModel.from_pretrained(tmp_path)
    assert gap(read(batch).last_hidden_state, own.encode(batch)) <= FAR


def test_a_size_that_is_named_is_fed_without_a_warning_and_must_fit_the_patch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(make(tiny()), tmp_path / "weights")
    model = ours.CrateMAEModel.from_pretrained(folder, image_size=16)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="crate_mae"):
        model(batch_of(16))
        assert not caplog.messages
        model(batch_of(20))
    assert caplog.messages == [
        "image size differs from the model's: sin-cos positions recomputed, 2x3 -> 5x5"
    ]
    with pytest.raises(ValueError, match="18x18 is not a multiple of patch 4x4"):
        ours.CrateMAEModel.from_pretrained(folder, image_size=18)


def test_the_image_processor_takes_the_size_that_it_is_told(tmp_path: Path) -> None:
    folder = save_model(make(tiny()), tmp_path / "weights")
    size = {"height": 16, "width": 20}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, size=size)
    image = torch.randint(256, (3, 30, 40), dtype=torch.uint8)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 16, 20)
