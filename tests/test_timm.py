"""What timm's own tests do not ask: names, weights, stochastic depth, scripts of any batch."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import ROOT, code_of

from crate_mae.models.config import PRESETS
from crate_mae.weights.one_folder import unsupported_by_timm
from crate_mae.weights.shipped import SHIPPED
from crate_mae.weights.weights_folder import load_model, save_model

timm = pytest.importorskip("timm")
ours = pytest.importorskip("crate_mae.timm")


def test_every_preset_and_shipped_model_is_registered() -> None:
    names = timm.list_models(module=ours.MODULE)
    for preset, config in PRESETS.items():
        stem = f"crate_mae_{preset.replace('-', '_')}_patch"
        expected = 0 if unsupported_by_timm(config) else 1
        assert sum(name.startswith(stem) for name in names) == expected
        if not expected:
            with pytest.raises(ValueError, match="timm's vision transformers have no"):
                ours.CrateTransformer(config)
    weights = timm.list_models("crate_mae*", pretrained=True)
    assert weights == sorted(f"crate_mae_{name.replace('-', '_')}" for name in SHIPPED)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_weights_give_our_features(name: str) -> None:
    model = timm.create_model(f"crate_mae_{name.replace('-', '_')}", pretrained=True).eval()
    images = torch.rand(2, 3, *load_model(name).config.image_hw)
    with torch.inference_mode():
        expected = load_model(name).encode(images)
        assert (model.forward_features(images) - expected).abs().max() <= 1e-5
        assert (model(images) - expected[:, 1:].mean(dim=1)).abs().max() <= 1e-5
    assert timm.data.resolve_model_data_config(model)["std"] == list(
        load_model(name).preprocess.std
    )


def test_the_examples_read_the_weights_of_a_folder(tmp_path: Path) -> None:
    expected = load_model("cifar10-shallow")
    folder = save_model(expected, tmp_path / "weights")
    in_docstring = "".join(re.findall(r"^ {4}(.*\n)", ours.__doc__, re.MULTILINE))
    on_page = code_of((ROOT / "docs" / "libraries.md").read_text("utf-8"))[0]
    images = torch.rand(2, 3, 32, 32)
    for code in (in_docstring, on_page):
        scope: dict[str, Any] = {}
        exec(code.replace("FOLDER", str(folder)), scope)
        with torch.inference_mode():
            found = scope["model"].eval().forward_features(images)
            assert (found - expected.encode(images)).abs().max() <= 1e-5


def test_channels_classes_sizes_and_pools() -> None:
    name = "crate_mae_cifar10_shallow"
    model = timm.create_model(
        name, pretrained=True, in_chans=1, num_classes=5, dynamic_img_size=True, global_pool="token"
    )
    assert model(torch.rand(2, 1, 32, 48)).shape == (2, 5)
    model.set_input_size(img_size=(40, 32))
    model.reset_classifier(0, "max")
    assert model(torch.rand(2, 1, 40, 32)).shape == (2, 192)
    features = timm.create_model(name, features_only=True, out_indices=(0, 1))
    assert [tuple(m.shape) for m in features(torch.rand(1, 3, 32, 32))] == [(1, 192, 8, 8)] * 2
    with pytest.raises(TypeError, match="foo"):
        timm.create_model(name, foo=1)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_script_takes_any_number_of_images() -> None:
    model = timm.create_model("crate_mae_debug_patch8_32", num_classes=3).eval()
    scripted = torch.jit.script(model)
    for count in (1, 7):
        images = torch.rand(count, 3, 32, 32)
        with torch.no_grad():
            assert (scripted(images) - model(images)).abs().max() <= 1e-5


def test_stochastic_depth_leaves_steps_out_in_training_alone() -> None:
    torch.manual_seed(0)
    model = timm.create_model("crate_mae_debug_patch8_32", num_classes=0, drop_path_rate=0.9)
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(model.eval()(images), model(images))
    assert not torch.equal(model.train()(images), model(images))


def test_initial_values_are_drawn_anew() -> None:
    model = timm.create_model("crate_mae_debug_patch8_32")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert {"cls_token", "head.weight", "blocks.0.layer.ista.dictionary"} <= changed
