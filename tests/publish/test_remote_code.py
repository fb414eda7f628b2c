"""The two files of code: they stand alone, and give what the package gives."""

import ast
from pathlib import Path

import pytest
import torch
from model_cases import VARIANTS
from processes import python

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.publish.package import build_package, write_folder
from crate_mae.publish.remote_code import CODE, remote_code
from crate_mae.weights.weights_folder import load_model, save_model

pytest.importorskip("transformers")

ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "crate_mae":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining
folder, images = sys.argv[1], torch.load(sys.argv[2])
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.inference_mode():
    torch.save(model(images).last_hidden_state, sys.argv[3])
"""


def test_no_file_imports_the_package_and_no_name_is_made_twice() -> None:
    for name, content in remote_code().items():
        tree = ast.parse(content)
        roots = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [root for root in roots if root and root.startswith("crate_mae")], name
        made = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", ["published", "overcomplete"])
def test_the_files_alone_give_our_features(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = VARIANTS.get(name, VARIANTS["published"])
    weights = save_model(CrateMAE(config), tmp_path / "weights")
    package = build_package(weights, name="some/model", with_code=True)
    assert set(CODE) <= package.files.keys()
    folder = write_folder(package, tmp_path / "pushed")
    images = torch.randn(2, config.channels, *config.image_hw)
    torch.save(images, tmp_path / "images.pt")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = [str(folder), str(tmp_path / "images.pt"), str(tmp_path / "found.pt")]
    code = f"import sys\nsys.argv[1:] = {arguments!r}\n{ALONE}"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = load_model(folder).encode(images)
    assert (torch.load(tmp_path / "found.pt") - expected).abs().max() <= 1e-5


def test_code_is_sent_only_when_asked_for(tmp_path: Path) -> None:
    weights = save_model(CrateMAE(VARIANTS["published"]), tmp_path / "weights")
    package = build_package(weights, name="some/model")
    assert not [name for name in package.files if name.endswith(".py")]
