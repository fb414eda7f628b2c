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
for folder, images, found, picture, expected in FOLDERS:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    pixels = processor(picture, return_tensors="pt").pixel_values
    assert torch.equal(pixels, torch.load(expected)), "a rare kind of file is read as here"
    with torch.inference_mode():
        torch.save(model(torch.load(images)).last_hidden_state, found)
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


def test_the_files_alone_give_our_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both kinds of layers, in one process."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    picture = key_among_four_bits(tmp_path / "key.png")
    folders = []
    for name in ("published", "overcomplete"):
        torch.manual_seed(0)
        config = VARIANTS.get(name, VARIANTS["published"])
        weights = save_model(CrateMAE(config), tmp_path / f"weights-{name}")
        package = build_package(weights, name="some/model", with_code=True)
        assert set(CODE) <= package.files.keys()
        folder = write_folder(package, tmp_path / name)
        files = [tmp_path / f"{name}-{what}.pt" for what in ("images", "found", "pixels")]
        images, found, pixels = map(str, files)
        torch.save(torch.randn(2, config.channels, *config.image_hw), images)
        wanted = prepare(
            [to_channels(decode_image(picture, "x"), 3)], load_model(folder).preprocess
        )
        torch.save(wanted, pixels)
        folders.append((str(folder), images, found, str(picture), pixels))
    done = python(f"FOLDERS = {folders!r}\n{ALONE}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for folder_name, images, found, *_ in folders:
        expected = load_model(folder_name).encode(torch.load(images))
        assert (torch.load(found) - expected).abs().max() <= 1e-5, folder_name


def test_code_is_sent_only_when_asked_for(tmp_path: Path) -> None:
    weights = save_model(CrateMAE(VARIANTS["published"]), tmp_path / "weights")
    package = build_package(weights, name="some/model")
    assert not [name for name in package.files if name.endswith(".py")]
