"""Exported models run in their own runtimes and give what PyTorch gives."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import tiny
from PIL import Image

import crate_mae.export.exporting as subject
from crate_mae.cli import main
from crate_mae.export.engines import engine_for
from crate_mae.export.exporting import Exported, export_model
from crate_mae.export.form import LinearISTA, export_form
from crate_mae.export.int8_loss import measure_int8_loss
from crate_mae.export.runtimes import FORMATS, check_installed, load_exported
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.ista import ISTA
from crate_mae.models.masks import draw_mask
from crate_mae.sources.arrays import ArraySource
from crate_mae.weights.weights_folder import load_model, save_model, weights_hash

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters warn of their own insides


def installed(name: str) -> Any:
    """A format, skipped where its packages are missing."""
    missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"no {missing}"))


EVERY = [installed(name) for name in FORMATS]


def weights(folder: Path, **changed: Any) -> str:
    """A folder with a small model, width above the number of tokens of one image."""
    torch.manual_seed(0)
    config = tiny(**{"dim": 24, "image_size": (16, 24), **changed})
    return str(save_model(CrateMAE(config), folder / "weights"))


@pytest.mark.parametrize("format", EVERY)
def test_features_of_any_number_of_images(format: str, tmp_path: Path) -> None:
    name = weights(tmp_path)
    images = torch.randn(5, 3, 16, 24)
    done = export_model(name, tmp_path / "encode", format=format)
    assert done.difference <= 1e-4
    with torch.inference_mode():
        found = load_exported(done.folder)([images])
        assert (found - load_model(name).encode(images)).abs().max() <= 1e-4


@pytest.mark.parametrize("format", EVERY)
@pytest.mark.parametrize("place", ["encoder", "decoder"])
def test_reconstructions_of_any_number_of_images(format: str, place: str, tmp_path: Path) -> None:
    name = weights(tmp_path, mask_tokens=place, depth=1, decoder_depth=1)
    model = load_model(name)
    assert isinstance(model, CrateMAE)
    images = torch.randn(5, 3, 16, 24)
    whole = export_model(name, tmp_path / "whole", format=format, what="reconstruct")
    mask = draw_mask("random", (4, 6), 0.75, torch.Generator().manual_seed(5), batch=5)
    with torch.inference_mode():
        found = load_exported(whole.folder)([images, mask])
        assert (found - model(images, mask).prediction).abs().max() <= 1e-4
    facts = json.loads((whole.folder / "export.json").read_text())
    assert facts["kept_patches"] == 6
    assert facts["inputs"]["mask"] == {"shape": ["batch", 24], "dtype": "bool"}
    assert facts["preprocess"]["size"] == [16, 24]


@pytest.mark.parametrize("format", EVERY)
def test_scores_of_classifiers(format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CrateClassifier(
        tiny(), num_classes=3, pool="layers", class_names=("a", "b", "c")
    ).eval()
    name = save_model(model, tmp_path / "weights")
    done = export_model(name, tmp_path / "out", format=format, what="classify")
    images = torch.randn(4, 3, 8, 12)
    with torch.inference_mode():
        assert (load_exported(done.folder)([images]) - model(images)).abs().max() <= 1e-4
    assert json.loads((done.folder / "export.json").read_text())["classes"] == ["a", "b", "c"]


@pytest.mark.parametrize("identity_outside", [False, True])
def test_the_linear_form_is_the_same_step(identity_outside: bool) -> None:
    torch.manual_seed(0)
    ista = ISTA(dim=16, step_size=0.1, sparsity=0.5)
    x = torch.randn(3, 5, 16)
    D = ista.dictionary.detach().double()
    wide = x.double()
    expected = torch.relu(wide + 0.1 * (wide - wide @ D.mT) @ D - 0.05)
    found = LinearISTA(ista, identity_outside=identity_outside)(x)
    assert (found - expected).abs().max() <= 1e-5


def test_the_form_leaves_the_model_alone() -> None:
    model = CrateMAE(tiny())
    changed = export_form(model)
    assert not any(isinstance(part, ISTA) for part in changed.modules())
    assert any(isinstance(part, ISTA) for part in model.modules())
    assert model.training


def test_a_difference_is_an_error_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slightly_wrong(model: CrateMAE, **options: Any) -> Any:
        changed = export_form(model, **options)
        with torch.no_grad():
            changed.encoder.norm.bias.add_(2e-4)  # type: ignore[union-attr, operator]
        return changed

    monkeypatch.setattr(subject, "export_form", slightly_wrong)
    with pytest.raises(RuntimeError, match=r"\de-04 apart, more than 1e-04; nothing"):
        export_model(weights(tmp_path), tmp_path / "out", format="pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_what_cannot_be_done_is_told_before_work(tmp_path: Path) -> None:
    name = weights(tmp_path)
    with pytest.raises(ValueError, match="hold no classifier"):
        export_model(name, tmp_path / "out", format="pt2", what="classify")
    with pytest.raises(ValueError, match="format must be one of"):
        export_model(name, tmp_path / "out", format="tflite")
    with pytest.raises(ValueError, match="int8 is for format onnx"):
        export_model(name, tmp_path / "out", format="pt2", int8=True)
    with pytest.raises(FileExistsError):
        export_model(name, name, format="pt2")
    with pytest.raises(FileNotFoundError, match="no exported model"):
        load_exported(tmp_path)


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crate_mae.export.runtimes.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "crate-mae\[onnx\]"'):
        check_installed("onnx")


@pytest.mark.parametrize("engine", [installed("onnx"), installed("openvino")])
def test_engines_give_the_features_of_torch(engine: str, tmp_path: Path) -> None:
    name = weights(tmp_path)
    encoder = engine_for(name, engine)
    images = torch.randn(3, 3, 16, 24)
    with torch.inference_mode():
        expected = load_model(name).encode(images)
    assert (encoder.encode(images) - expected).abs().max() <= 1e-4
    with pytest.raises(ValueError, match="after the last layer alone"):
        encoder.layer_tokens(images, [1])
    with pytest.raises(ValueError, match="computes on the CPU"):
        engine_for(name, engine, device="cuda")


@pytest.mark.parametrize("engine", [installed("onnx"), installed("openvino")])
def test_extract_takes_any_number_of_channels_and_of_images(engine: str, tmp_path: Path) -> None:
    name = weights(tmp_path, channels=5)
    np.save(tmp_path / "bands.npy", np.random.default_rng(0).random((2, 5, 16, 24), np.float32))
    words = ["extract", name, f"npy:{tmp_path / 'bands.npy'}", "--pool", "cls"]
    for kind in ("torch", engine):
        assert main([*words, "--engine", kind, "--out", str(tmp_path / f"{kind}.npz")]) == 0
    found, expected = (np.load(tmp_path / f"{kind}.npz")["values"] for kind in (engine, "torch"))
    assert found.shape == (2, 24)
    assert np.abs(found - expected).max() <= 1e-4


def test_as_many_images_are_compared_as_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = weights(tmp_path)
    values = np.random.default_rng(0).random((70, 3, 16, 24), np.float32)
    np.save(tmp_path / "images.npy", values)
    given = ["--images", f"npy:{tmp_path / 'images.npy'}"]
    for words, count in (([*given, "--limit", "70"], 70), (given, 8), (["--limit", "10"], 10)):
        out = tmp_path / f"exported-{count}"
        words = [*words, "--json", f"{out}.json"]
        assert main(["export", name, "--format", "pt2", "--out", str(out), *words]) == 0
        told = json.loads((tmp_path / f"{out.name}.json").read_text())
        assert (told["format"], told["what"]) == ("pt2", "encode")
        assert told["weights_sha256"] == weights_hash(name)
        assert told["data"]["address"] == (given[1] if given[1] in words else "photographs")
        assert json.loads((out / "export.json").read_text())["compared_images"] == count
        assert f"on {count} images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="limit must be at least 1"):
        export_model(name, tmp_path / "none", format="pt2", limit=0)
    with pytest.raises(SystemExit):
        main(["export", name, "--format", "pt2", "--out", "new", "--split", "test"])
    assert "--split, --image-key and --label-key choose from --images" in capsys.readouterr().err


def test_the_last_batch_is_compared_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in one image of many is found, wherever it stands."""
    run = FORMATS["pt2"].run

    def wrong_for_the_last(file: Path) -> Any:
        whole = run(file)

        def changed(inputs: list[torch.Tensor]) -> torch.Tensor:
            found = whole(inputs).clone()
            found[inputs[0].mean(dim=(1, 2, 3)) > 5] += 1e-3
            return found

        return changed

    images = np.random.default_rng(0).random((70, 3, 16, 24), np.float32)
    images[69] += 10
    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], run=wrong_for_the_last))
    source = ArraySource("array", images, prefix="image")
    name = weights(tmp_path)
    with pytest.raises(RuntimeError, match="other numbers than PyTorch"):
        export_model(name, tmp_path / "out", format="pt2", images=source, limit=70)
    assert export_model(name, tmp_path / "out", format="pt2", images=source, limit=69).images == 69


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A shipped model in eight bits, only ever read."""
    if find_spec("onnxruntime") is None:
        pytest.skip("no ONNX Runtime")
    out = tmp_path_factory.mktemp("exported") / "small"
    return export_model("cifar10-shallow", out, format="onnx", int8=True)


def test_the_loss_of_eight_bits_counts_what_was_tested(
    eight_bits: Exported, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name, low in (("dark", 0), ("light", 128)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "images" / "test" / "dark" / "0.png").write_bytes(b"no image")
    address = f"imagefolder:{tmp_path / 'images'}"
    loss = measure_int8_loss("cifar10-shallow", eight_bits.folder, address)
    assert loss.tested == 11
    of_what = (loss.trained_on, loss.tested_on, loss.pool, loss.layer)
    assert of_what == (f"{address} train", f"{address} test", "mean", None)
    assert loss.to_dict()["tested_on"] == f"{address} test"
    assert "11 test images" in loss.sentence()


def test_eight_bits_make_a_smaller_file_and_nearly_the_same_features(
    eight_bits: Exported, tmp_path: Path
) -> None:
    whole = export_model("cifar10-shallow", tmp_path / "whole", format="onnx")
    small = eight_bits
    assert small.file.stat().st_size < 0.5 * whole.file.stat().st_size
    images = torch.randn(2, 3, 32, 32)
    exact, rounded = (load_exported(done.folder)([images]) for done in (whole, small))
    assert 1e-4 < float((exact - rounded).norm() / exact.norm()) < 0.05
