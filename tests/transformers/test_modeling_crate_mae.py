"""What this family has beyond transformers' common tests: masks, backbones, fine-tuning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import VARIANTS, tiny

from crate_mae.models.autoencoder import CrateMAE
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
