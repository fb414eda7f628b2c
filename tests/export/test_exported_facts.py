"""An exported folder is refused where its files and its `export.json` do not fit together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import tiny

import crate_mae.export.int8_loss as int8_loss
from crate_mae.export.engines import ExportedEncoder
from crate_mae.export.exported_facts import FACTS, MAX_FACTS_BYTES, read_facts
from crate_mae.export.exporting import export_model
from crate_mae.export.runtimes import load_exported
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.weights.weights_folder import load_model, save_model, weights_hash

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters warn of their own insides


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights a and b, of equal sizes, and their exports a-out and b-out."""
    folder = tmp_path_factory.mktemp("exported")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save_model(CrateMAE(tiny()), folder / name)
        export_model(folder / name, folder / f"{name}-out", format="pt2")
    return folder


@pytest.fixture
def out(place: Path, tmp_path: Path) -> Path:
    """A copy of a-out that a test may change."""
    return Path(shutil.copytree(place / "a-out", tmp_path / "out"))


def said(folder: Path, **changed: Any) -> None:
    """Change values of `export.json`; those of None are left out."""
    values = json.loads((folder / FACTS).read_text()) | changed
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / FACTS).write_text(json.dumps(kept))


def test_what_fits_runs(place: Path, out: Path) -> None:
    model = load_model(place / "a")
    encoder = ExportedEncoder(model, out, weights_sha256=weights_hash(place / "a"))
    images = torch.randn(2, 3, *model.preprocess.size)
    with torch.inference_mode():
        assert (encoder.encode(images) - model.encode(images)).abs().max() <= 1e-4
    assert list(read_facts(out).files) == ["model.pt2"]


def test_a_file_of_another_model_is_refused(place: Path, out: Path) -> None:
    """It has the same sizes, so that nothing but its content tells."""
    shutil.copy(place / "b-out" / "model.pt2", out)
    with pytest.raises(ValueError, match=r"model.pt2 is not the file .* SHA-256 is .* the right"):
        load_exported(out)
    with pytest.raises(ValueError, match=r"is not the file that export\.json"):
        ExportedEncoder(load_model(place / "a"), out)


def test_a_folder_of_another_model_or_task_is_refused(place: Path, out: Path) -> None:
    a = load_model(place / "a")
    with pytest.raises(ValueError, match=r"exported from another model: weights \(.*into a new"):
        ExportedEncoder(a, place / "b-out", weights_sha256=weights_hash(place / "a"))
    torch.manual_seed(0)
    wider = CrateMAE(tiny(image_size=(8, 16)))
    with pytest.raises(ValueError, match=r"another model: takes \(.*12.*there.*16.*here\)"):
        ExportedEncoder(wider, out)
    said(out, preprocess={**read_facts(out).preprocess, "mean": [0.5, 0.5, 0.5]})
    with pytest.raises(ValueError, match=r"preprocessing, mean \(\[0\.5"):
        ExportedEncoder(a, out)
    said(out, what="reconstruct")
    with pytest.raises(ValueError, match=r"to do 'reconstruct', .* with --what encode"):
        ExportedEncoder(a, out)


def test_the_loss_of_eight_bits_is_of_the_same_weights_in_eight_bits(
    place: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_loss, "open_pair", None)  # it is told before any image is read
    with pytest.raises(ValueError, match="in float32, not in eight bits: export it with --int8"):
        int8_loss.measure_int8_loss(place / "a", out, "digits")
    said(out, int8=True)
    with pytest.raises(ValueError, match="exported from another model: weights"):
        int8_loss.measure_int8_loss(place / "b", out, "digits")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"files": None}, "does not say which files .* into a new folder"),
        ({"files": {}}, "files that are none of a model"),
        ({"files": {"../model.pt2": "0"}}, "files that are none of a model"),
        ({"files": {f"{n}": "0" for n in range(9)}}, "files that are none of a model"),
        ({"files": {"model.pt2": 1}}, "files that are none of a model"),
        ({"files": {"other.pt2": "0"}}, "none that can be run here"),
        ({"format": "tflite\x1b[2J"}, r"format 'tflite\\x1b\[2J' and the files"),
        ({"format": 7}, "its format cannot be 7"),
        ({"int8": "no"}, "its int8 cannot be 'no'"),
        ({"weights_sha256": ["x" * 999]}, r"its weights_sha256 cannot be \['x{58}\.\.\."),
        ({"inputs": None}, "its inputs cannot be None"),
    ],
)
def test_what_export_json_cannot_say_is_refused(
    out: Path, changed: dict[str, Any], message: str
) -> None:
    said(out, **changed)
    with pytest.raises(ValueError, match=message) as told:
        load_exported(out)
    assert str(told.value).isprintable()


def test_a_missing_or_huge_or_broken_file_is_told(out: Path) -> None:
    (out / "model.pt2").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model\.pt2, which export\.json names, is missing"
    ):
        load_exported(out)
    (out / FACTS).write_text("{" * 5000)
    with pytest.raises(ValueError, match="is no JSON"):
        load_exported(out)
    with (out / FACTS).open("wb") as file:
        file.truncate(MAX_FACTS_BYTES + 1)
    with pytest.raises(ValueError, match="is larger than"):
        load_exported(out)
    (out / FACTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no export\.json"):
        load_exported(out)
