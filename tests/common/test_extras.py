"""The core works without any extra, and what is missing names the command that brings it."""

import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from model_cases import digits_model
from processes import python
from training_runs import small_config, write_recipe

from crate_mae.batches.config import DataConfig
from crate_mae.common.extras import EXTRA_OF, with_command
from crate_mae.training.config import OptimConfig, RecordConfig
from crate_mae.weights.weights_folder import save_model

ROOT = Path(__file__).parents[2]

BARE = f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRA_OF)!r}))\n"
"""A process in which none of those packages can be imported."""


def test_every_extra_is_one_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(EXTRA_OF.values()) <= set(extras)


def test_the_core_loads_decodes_and_encodes() -> None:
    code = BARE + (
        "import numpy, torch\n"
        "from PIL import Image\n"
        "from crate_mae import load_model\n"
        "from crate_mae.batches.transforms import prepare\n"
        "from crate_mae.sources import decode_image\n"
        "model = load_model('cifar10-shallow')\n"
        "image = Image.fromarray(numpy.zeros((40, 50, 3), numpy.uint8))\n"
        "print(tuple(model.encode(prepare([decode_image(image, 'x')], model.preprocess)).shape))\n"
    )
    done = python(code)
    assert done.stdout.strip() == "(1, 65, 192)", done.stderr


def without(*extras: str) -> str:
    """Code after which no package can be imported but those of the core and of these extras."""
    missing = sorted(package for package, extra in EXTRA_OF.items() if extra not in extras)
    return (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        # Some libraries ask the installer's records what there is.
        "import importlib.metadata as records\n"
        "known = records.distribution\n"
        "def distribution(name):\n"
        f"    if name.lower() in {[*missing, 'scikit-learn']!r}:\n"
        "        raise records.PackageNotFoundError(name)\n"
        "    return known(name)\n"
        "records.distribution = distribution\n"
    )


def test_the_extra_train_alone_trains(tmp_path: Path) -> None:
    config = small_config(
        data=DataConfig(source=f"npy:{tmp_path / 'images.npy'}"),
        optim=OptimConfig(epochs=1, batch_size=32, base_lr=1e-2, warmup_epochs=0),
        record=RecordConfig(log_every=1, reconstruct_epochs=1),
    )
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((80, 1, 8, 8), np.float32))
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    words = ["pretrain", "--config", str(recipe), "--out", str(tmp_path / "run")]
    done = python(f"{without('train')}from crate_mae.cli import main\nsys.exit(main({words!r}))")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
    assert "no reconstruction drawn" in done.stderr
    assert 'pip install "crate-mae[figures]"' in done.stderr


def test_no_extra_is_needed_to_export_with_torch_or_to_say_what_onnx_needs(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((4, 1, 8, 8), np.float32))
    weights = save_model(digits_model(), tmp_path / "weights")
    words = ["export", str(weights), "--format", "pt2", "--out", str(tmp_path / "out")]
    images = ["--images", f"npy:{tmp_path / 'images.npy'}"]
    calls = [words, [*words, *images]]
    code = f"from crate_mae.cli import main\nprint(*(main(words) for words in {calls!r}))"
    done = python(BARE + code)
    assert done.stdout.splitlines()[-1] == "1 0", done.stderr
    assert 'this needs sklearn, which is not installed: pip install "crate-mae[e' in done.stderr
    assert (tmp_path / "out" / "export.json").is_file()


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="no ONNX Runtime")
def test_the_extra_onnx_alone_exports_and_computes_features(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((4, 1, 8, 8), np.float32))
    address = f"npy:{tmp_path / 'images.npy'}"
    weights = str(save_model(digits_model(), tmp_path / "weights"))
    calls = [
        ["export", weights, "--format", "onnx", "--out", str(tmp_path / "out"),
         "--images", address],
        ["extract", weights, address, "--engine", "onnx", "--out",
         str(tmp_path / "features.npz")],
    ]  # fmt: skip
    done = python(
        f"{without('onnx')}from crate_mae.cli import main\n"
        f"sys.exit(max(main(words) for words in {calls!r}))"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "features.npz").is_file()


def test_what_is_missing_names_the_command() -> None:
    code = BARE + "from crate_mae import pretrain\n"
    done = python(code)
    assert done.returncode != 0
    assert 'pip install "crate-mae[train]"' in done.stderr


def test_other_errors_stay_what_they_are() -> None:
    other = ImportError("cannot import name 'x'")
    assert with_command(other) is other
