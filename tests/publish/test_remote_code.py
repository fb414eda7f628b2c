"""The two files of code: they stand alone, and give what the package gives."""

import ast
import builtins
import symtable
from pathlib import Path

import pytest
import torch
from model_cases import VARIANTS
from processes import python
from rare_files import key_among_four_bits

from crate_mae.batches.transforms import prepare
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.publish.package import build_package, write_folder
from crate_mae.publish.remote_code import CODE, remote_code
from crate_mae.sources.images import decode_image, to_channels
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
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pixels = processor(sys.argv[4], return_tensors="pt").pixel_values
assert torch.equal(pixels, torch.load(sys.argv[5])), "a rare kind of file is read as here"
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


def test_every_name_that_is_used_is_made_or_imported() -> None:
    """Also in functions that no test calls, where a missing name would stay unseen."""
    for name, content in remote_code().items():
        waiting = [symtable.symtable(content.decode(), name, "exec")]
        top = {symbol.get_name() for symbol in waiting[0].get_symbols() if symbol.is_local()}
        used = set()
        while waiting:
            scope = waiting.pop()
            waiting += scope.get_children()
            used |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
        assert used - top - set(dir(builtins)) - {"__file__", "__name__"} == set(), name


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
    picture = key_among_four_bits(tmp_path / "key.png")
    expected = prepare([to_channels(decode_image(picture, "x"), 3)], load_model(folder).preprocess)
    torch.save(expected, tmp_path / "pixels.pt")
    names = ("images.pt", "found.pt", "key.png", "pixels.pt")
    arguments = [str(folder), *(str(tmp_path / name) for name in names)]
    code = f"import sys\nsys.argv[1:] = {arguments!r}\n{ALONE}"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = load_model(folder).encode(images)
    assert (torch.load(tmp_path / "found.pt") - expected).abs().max() <= 1e-5


def test_code_is_sent_only_when_asked_for(tmp_path: Path) -> None:
    weights = save_model(CrateMAE(VARIANTS["published"]), tmp_path / "weights")
    package = build_package(weights, name="some/model")
    assert not [name for name in package.files if name.endswith(".py")]
