"""Segmenters in weights folders: whole again from the folder alone, and damage that is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import images_for, tiny

from crate_mae.evaluation.backbones import (
    KINDS,
    as_segmenter,
    describe_weights,
    load_backbone,
    load_masked_autoencoder,
)
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.depict import CrateSegmenter, HeadName, segmentation_head
from crate_mae.models.encoder import Encoder
from crate_mae.models.mask_classes import MaskClasses
from crate_mae.weights.tensors import IncompleteWeightsError
from crate_mae.weights.weights_folder import load_autoencoder, load_model, save_model

CLASSES = MaskClasses(values=(0, 7, 3), names=("sky", "cat", "dög"), ignored=(255, 9))
HEADS: tuple[HeadName, ...] = ("linear", "depict-self", "depict-cross")


def segmenter(head: HeadName = "linear") -> CrateSegmenter:
    torch.manual_seed(0)
    config = tiny()
    decoder = segmentation_head(head, dim=config.dim, num_classes=3)
    return CrateSegmenter(Encoder(config), decoder, classes=CLASSES).eval()


@pytest.mark.parametrize("head", HEADS)
def test_a_folder_alone_rebuilds_a_segmenter(tmp_path: Path, head: HeadName) -> None:
    model = segmenter(head)
    folder = save_model(model, tmp_path / "weights")
    state = torch.get_rng_state()
    loaded = load_model(folder)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
    assert isinstance(loaded, CrateSegmenter)
    assert loaded.classes == CLASSES
    images = images_for(model.config)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    found, _ = load_backbone(folder)
    assert as_segmenter(found) is found
    assert KINDS[found.kind].role == "segmenter"
    facts = describe_weights(folder)
    assert facts["segmenter"]["head"] == head
    assert facts["segmenter"]["class_names"] == ["sky", "cat", "dög"]
    assert facts["parameters_by_part"]["decoder"] == sum(
        p.numel() for p in model.decoder.parameters()
    )
    again = save_model(loaded, tmp_path / "again")
    for name in ("model.safetensors", "config.json", "preprocess.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    for load in (load_autoencoder, load_masked_autoencoder):
        with pytest.raises(ValueError, match="holds a segmenter, which has no decoder"):
            load(folder)
    classifier = CrateClassifier.from_pretrained(loaded, num_classes=2)
    for key, value in loaded.encoder.state_dict().items():
        assert torch.equal(classifier.encoder.state_dict()[key], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "deep"}, "the head is 'deep'"),
        ({"head": None}, "the head is None"),
        ({"dim": 10**9}, "dim of the decoder is 1000000000"),
        ({"dim": 16}, "the head is for width 16 and 3 classes"),
        ({"num_classes": 4}, "and 4 classes, the encoder has width .* and 3 classes are named"),
        ({"num_layers": 2}, "num_layers"),
        ({"values": [0, 1]}, "3 class names for 2 classes|2 classes are named"),
        ({"values": [0, 0, 1]}, "two classes have one mask value"),
        ({"values": list(range(300))}, "pixels have 1 to 255 classes, not 300"),
        ({"class_names": "abc"}, "class_names of the classes must be a list"),
        ({"ignored": [7]}, r"\[7\] are classes and ignored at once"),
        ({"heads": {}}, "heads of the decoder is {}"),
    ],
)
def test_a_damaged_description_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = save_model(segmenter(), tmp_path / "weights")
    described = json.loads((folder / "config.json").read_text())
    described["segmenter"] |= change
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_sizes_that_the_tensors_do_not_have(tmp_path: Path) -> None:
    folder = save_model(segmenter("depict-self"), tmp_path / "weights")
    described = json.loads((folder / "config.json").read_text())
    described["segmenter"]["num_layers"] = 400
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(IncompleteWeightsError, match=r"decoder\.layers\.3"):
        load_model(folder)
    del described["segmenter"]
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="has no object 'segmenter'"):
        load_model(folder)
