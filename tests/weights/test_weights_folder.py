"""Weights folders: bit-equal round trips, atomic writing, and files that are not to be trusted."""

import hashlib
import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import VARIANTS, images_for, make, mask_for, tiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crate_mae.models.autoencoder import CrateMAE, build_model
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.weights.tensors import IncompleteWeightsError, read_safetensors
from crate_mae.weights.weights_folder import (
    load_autoencoder,
    load_model,
    local_weights_folder,
    save_model,
    weights_hash,
)

FILES = {"model.safetensors", "config.json", "preprocess.json"}
WRITTEN = FILES | {"preprocessor_config.json"}


def facts_for(config: ModelConfig) -> Preprocess:
    channels = config.channels
    return Preprocess(
        size=config.image_hw,
        channels=channels,
        mean=tuple(0.1 + 0.01 * i for i in range(channels)),
        std=tuple(1 / 3 + 0.1 * i for i in range(channels)),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A weights folder of a small model."""
    return save_model(make(tiny()), tmp_path / "weights")


@pytest.fixture
def classifier_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_model(CrateClassifier(tiny(), num_classes=3), tmp_path / "classifier")


def assert_same_tensors(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, theirs[key]), key


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit_config(folder: Path, **values: Any) -> None:
    described = json.loads((folder / "config.json").read_text())
    described["config"].update(values)
    (folder / "config.json").write_text(json.dumps(described))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most values any one tensor held that was made on a real device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type != "meta":
                self.largest = max(self.largest, value.untyped_storage().nbytes() // 4)
        return result


# --- round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_autoencoder_returns_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    model = make(config).eval()
    model.preprocess = facts_for(config)
    folder = save_model(model, tmp_path / "deep" / "er" / "weights")
    assert folder == tmp_path / "deep" / "er" / "weights"
    assert {path.name for path in folder.iterdir()} == WRITTEN
    state = torch.get_rng_state()
    loaded = load_model(str(folder))
    torch.set_rng_state(state)
    assert isinstance(loaded, CrateMAE)
    assert loaded.config == config
    assert loaded.preprocess == model.preprocess
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert_same_tensors(loaded, model)
    images, mask = images_for(config), mask_for(config)
    assert torch.equal(loaded(images, mask).prediction, model(images, mask).prediction)
    assert torch.equal(loaded.encode(images), model.encode(images))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("names", [None, ("cat", "dög", 'a "quoted" name')])
def test_classifier_returns_bit_for_bit(
    name: str, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    config = VARIANTS[name]
    torch.manual_seed(0)
    model = CrateClassifier(config, num_classes=3, pool="cls", class_names=names).eval()
    model.preprocess = facts_for(config)
    loaded = load_model(save_model(model, tmp_path / "weights"))
    assert isinstance(loaded, CrateClassifier)
    assert (loaded.config, loaded.preprocess) == (config, model.preprocess)
    assert (loaded.pool, loaded.class_names) == ("cls", names)
    assert not loaded.training
    assert_same_tensors(loaded, model)
    assert torch.equal(loaded(images_for(config)), model(images_for(config)))


def test_saving_changes_nothing_in_the_model(tmp_path: Path) -> None:
    model = make(tiny()).double().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_model(model, tmp_path / "weights")
    assert model.training
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, before[key])


def test_a_given_state_replaces_the_models_own(tmp_path: Path) -> None:
    model, other = make(tiny()), make(tiny(), seed=9)
    loaded = load_model(save_model(model, tmp_path / "weights", state=other.state_dict()))
    assert_same_tensors(loaded, other)
    state = dict(other.state_dict())
    del state["mask_token"]
    with pytest.raises(
        IncompleteWeightsError, match=r"this state does not fit.*1 missing: mask_to"
    ):
        save_model(model, tmp_path / "incomplete", state=state)
    assert not (tmp_path / "incomplete").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_loaded_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make(tiny()).to(dtype)
    folder = save_model(model, tmp_path / "weights")
    assert all(t.dtype == dtype for t in load_file(folder / "model.safetensors").values())
    assert_same_tensors(load_model(folder), make(tiny()).to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_tensors_that_are_no_real_numbers_are_refused(dtype: torch.dtype, folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["mask_token"] = tensors["mask_token"].to(dtype)

    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=r"holds 1 tensors that are no floating.*mask_token torch"):
        load_model(folder)


def test_hash_is_that_of_the_tensor_file(folder: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights_hash(folder) == expected
    for index in range(8):  # the same weights, the same file
        assert weights_hash(save_model(make(tiny()), tmp_path / f"again {index}")) == expected
    assert weights_hash(save_model(make(tiny(), seed=1), tmp_path / "other")) != expected


def test_run_folder_and_its_weights_folder_are_the_same(tmp_path: Path) -> None:
    model = make(tiny())
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("step,loss\n")
    save_model(model, run / "weights")
    assert local_weights_folder(run) == run / "weights"
    assert_same_tensors(load_model(run), model)


def test_files_may_be_links(folder: Path, tmp_path: Path) -> None:
    """As in the cache of the Hub, where every file is a link to its content."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in FILES:
        (linked / name).symlink_to(folder / name)
    assert_same_tensors(load_model(linked), make(tiny()))


def test_classifier_is_no_autoencoder(classifier_folder: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a classifier, which has no decoder"):
        load_autoencoder(classifier_folder)
    assert_same_tensors(load_autoencoder(folder), make(tiny()))


# --- writing ----------------------------------------------------------------------------------


def test_existing_weights_are_kept_unless_told_otherwise(folder: Path) -> None:
    before, other = listing(folder), make(tiny(), seed=4)
    with pytest.raises(FileExistsError, match=r"holds weights; .* pass overwrite=True"):
        save_model(other, folder)
    assert listing(folder) == before
    save_model(other, folder, overwrite=True)
    assert_same_tensors(load_model(folder), other)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    save_model(make(tiny()), tmp_path / "weights")
    assert_same_tensors(load_model(tmp_path / "weights"), make(tiny()))


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_never_touched(overwrite: bool, folder: Path) -> None:
    (folder / "thesis.tex").write_text("years of work")
    before = listing(folder)
    with pytest.raises(FileExistsError, match=r"holds other files \(thesis.tex\)"):
        save_model(make(tiny()), folder, overwrite=overwrite)
    assert listing(folder) == before


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; weights are a folder"):
        save_model(make(tiny()), tmp_path / "weights", overwrite=True)
    assert (tmp_path / "weights").read_text() == "mine"


class Interrupted(BaseException):
    """As a keyboard interrupt, but nobody else's."""


@pytest.mark.parametrize("error", [OSError("no space left"), Interrupted()], ids=["full", "stop"])
@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize("exists", [True, False], ids=["over old", "new"])
def test_nothing_is_left_half_written(
    error: BaseException,
    failing: int,
    exists: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "weights"
    if exists:
        save_model(make(tiny()), target)
    before, calls = listing(tmp_path), []

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) == failing:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(type(error)):
        save_model(make(tiny(), seed=3), target, overwrite=True)
    assert len(calls) == failing
    assert listing(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["weights"] if exists else [])


@pytest.mark.parametrize("error", [OSError("cannot move"), Interrupted()], ids=["full", "stop"])
@pytest.mark.parametrize(
    ("exists", "failing"), [(True, 1), (True, 2), (False, 1)], ids=["first", "second", "only"]
)
def test_a_failing_move_leaves_the_old_folder(
    error: BaseException,
    exists: bool,
    failing: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "weights"
    if exists:
        save_model(make(tiny()), target)
    before, calls, original = listing(tmp_path), [], Path.rename

    def rename(self: Path, other: Path) -> Path:
        calls.append(1)
        if len(calls) == failing:
            raise error
        return original(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        save_model(make(tiny(), seed=3), target, overwrite=True)
    assert listing(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["weights"] if exists else [])


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    link.symlink_to(real)
    for seed in (0, 1):  # dangling at first
        save_model(make(tiny(), seed=seed), link, overwrite=True)
        assert link.is_symlink()
        assert {path.name for path in real.iterdir()} == WRITTEN
        assert_same_tensors(load_model(link), make(tiny(), seed=seed))
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link"}
    assert {path.name for path in real.parent.iterdir()} == {"real"}


def test_others_may_read_what_was_written(folder: Path) -> None:
    assert folder.stat().st_mode & 0o555 == 0o555
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o400


def test_files_are_plain(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    assert described["model"] == "CrateMAE"
    assert ModelConfig.from_dict(described["config"]) == tiny()
    assert json.loads((folder / "preprocess.json").read_text())["size"] == [8, 12]
    assert set(load_file(folder / "model.safetensors")) == set(make(tiny()).state_dict())


# --- reading: tensors -------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_truncated_files_are_refused(share: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"model.safetensors is no complete safetensors file"):
        load_model(folder)


def test_lengthened_file_is_refused(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 8)
    with pytest.raises(ValueError, match="no complete safetensors file"):
        load_model(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_missing_files_are_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no weights folder: {name} missing"):
        load_model(folder)


def test_pickled_file_under_our_name_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    for content in (pickle.dumps(Hostile()), pickle.dumps({"model": Hostile()}, protocol=0)):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"no (complete )?safetensors file"):
            load_model(folder)
        assert not trace.exists()
    pickle.loads(content)  # the attack is one that works where a file is unpickled
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "but a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "but a web page, not the file itself"),
        (b"", "no complete safetensors file: it is empty"),
    ],
)
def test_what_a_file_is_that_is_no_safetensors_file(
    content: bytes, words: str, folder: Path
) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_model(folder)
    with pytest.raises(ValueError, match=words):
        read_safetensors(folder / "model.safetensors")


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["encoder.norm.wieght"] = tensors.pop("encoder.norm.weight")


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["decoder.1.synthesis.weight"], tensors["mask_token"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["extra"] = torch.zeros(2)


def transpose(tensors: dict[str, Tensor]) -> None:
    tensors["prediction.weight"] = tensors["prediction.weight"].T.contiguous()


def flatten(tensors: dict[str, Tensor]) -> None:
    tensors["mask_token"] = tensors["mask_token"].flatten()


TOTAL = len(make(tiny()).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rename,
            f"{TOTAL - 1} tensors match; 1 missing: encoder.norm.weight;"
            " 1 unexpected: encoder.norm.wieght",
        ),
        (drop, f"{TOTAL - 2} tensors match; 2 missing: mask_token, decoder.1.synthesis.weight"),
        (add, f"{TOTAL} tensors match; 1 unexpected: extra"),
        (
            transpose,
            f"{TOTAL - 1} tensors match; 1 re-shaped: prediction.weight (12, 48) instead of"
            " (48, 12)",
        ),
        (flatten, "1 re-shaped: mask_token (12,) instead of (1, 1, 12)"),
        (dict.clear, "0 tensors"),
    ],
    ids=["renamed", "missing", "unexpected", "transposed", "flattened", "none"],
)
def test_tensors_that_do_not_match_are_listed(
    change: Callable[[dict[str, Tensor]], None], message: str, folder: Path
) -> None:
    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_model(folder)
    if change is not dict.clear:
        assert isinstance(caught.value, IncompleteWeightsError)
        assert "model.safetensors" in str(caught.value)


def test_long_lists_of_names_are_cut_with_their_number(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for index in range(30):
            tensors[f"extra.{index:02}"] = torch.zeros(1)

    edit_tensors(folder, change)
    with pytest.raises(IncompleteWeightsError, match=r"30 unexpected: extra.00,.* and 22 more"):
        load_model(folder)


def test_encoder_only_file_never_yields_a_random_decoder(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if not key.startswith("encoder.")]:
            del tensors[key]

    decoder = sum(not key.startswith("encoder.") for key in make(tiny()).state_dict())
    edit_tensors(folder, change)
    message = rf"holds an encoder only \(0 of {decoder} decoder tensors\); reconstruction"
    with pytest.raises(IncompleteWeightsError, match=message):
        load_model(folder)


def test_classifier_without_its_head_is_not_called_a_decoder(classifier_folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["head.weight"], tensors["head.bias"]

    edit_tensors(classifier_folder, change)
    with pytest.raises(
        IncompleteWeightsError, match=r"2 missing: head.weight, head.bias$"
    ) as error:
        load_model(classifier_folder)
    assert "decoder" not in str(error.value)


def test_a_failed_load_changes_no_weight() -> None:
    from crate_mae.weights.tensors import load_exactly

    model = make(tiny())
    state = {key: value + 1 for key, value in model.state_dict().items()}
    state["mask_token"] = torch.zeros(1)
    with pytest.raises(IncompleteWeightsError, match="1 re-shaped"):
        load_exactly(model, state, origin="here")
    assert_same_tensors(model, make(tiny()))


# --- reading: configuration -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_head": 4}, "unknown ModelConfig field 'num_head' .did you mean 'num_heads'"),
        ({"dim": "12"}, "dim must be a positive whole number, not '12'"),
        ({"dim": 12.0}, "dim must be a positive whole number, not 12.0"),
        ({"dim": None}, "dim must be a positive whole number, not None"),
        ({"dim": {}}, "dim must be a positive whole number"),
        ({"image_size": "big"}, "a size is one number or"),
        ({"image_size": [8]}, "a size is one number or"),
        ({"image_size": [[8], 12]}, "image height must be a positive whole number"),
        ({"output_projection": ["free"]}, "output_projection must be one of"),
        ({"norm_pix_loss": "no"}, "norm_pix_loss must be true or false"),
        ({"step_size": math.nan}, "step_size must be a finite number of at least 0, not nan"),
        ({"sparsity": math.inf}, "sparsity must be a finite number of at least 0, not inf"),
        ({"sparsity": -math.inf}, "sparsity must be a finite number of at least 0"),
        ({"step_size": 10**400}, "step_size must be a finite number"),
        ({"dim": 10**9}, "dim 1000000000 is above the limit"),
        ({"depth": 10**9}, "depth 1000000000 is above the limit"),
        ({"decoder_depth": 10**9}, "decoder_depth 1000000000 is above the limit"),
        ({"channels": 10**9}, "channels 1000000000 is above the limit"),
        ({"num_heads": 10**9}, "num_heads 1000000000 is above the limit"),
        ({"image_size": 4 * 10**9}, "is above the limit"),
        ({"image_size": 10**18, "patch_size": 10**18}, "is above the limit"),
        ({"image_size": 10**400}, "is above the limit"),
        ({"image_size": 65_536, "patch_size": 1}, "patches are above the limit"),
        ({"depth": 512}, "tensors cannot fill 512 layers"),
        # Within the limits, but not what the tensors are: found without making them.
        ({"dim": 16_384, "num_heads": 1, "decoder_num_heads": 1}, "re-shaped"),
        ({"decoder_depth": 300}, "missing: decoder.2.norm1.weight"),
        ({"channels": 4096}, "2 re-shaped: prediction.weight|re-shaped"),
        ({"image_size": 65_536, "patch_size": 65_536}, "re-shaped"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_configurations_of_strangers_are_refused_before_anything_is_made(
    values: dict[str, Any], message: str, folder: Path
) -> None:
    edit_config(folder, **values)
    with Allocations() as made, pytest.raises(ValueError, match=message):
        load_model(folder)
    assert made.largest < 100_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_classes": 10**7}, "re-shaped: head.weight .3, 12. instead of .10000000, 12."),
        ({"num_classes": 10**12}, "classes, not 1000000000000"),
        ({"num_classes": 10**40}, "classes, not 1000"),
        ({"num_classes": -1}, "classes, not -1"),
        ({"num_classes": "3"}, "num_classes must be a whole number"),
        ({"num_classes": 3.7}, "num_classes must be a whole number"),
        ({"num_classes": True}, "num_classes must be a whole number"),
        ({"num_classes": None}, "num_classes must be a whole number"),
        ({"pool": "max"}, "pool must be one of cls, mean, mean-all, mean-std, layers, not 'max'"),
        ({"pool": ["mean"]}, "pool must be one of cls, mean, mean-all"),
        ({"class_names": ["a"]}, "1 class names for 3 classes"),
        ({"class_names": "abc"}, "class_names a list or null"),
        ({"class_names": 7}, "class_names a list or null"),
    ],
    ids=str,
)
def test_classifiers_of_strangers_are_refused_before_anything_is_made(
    values: dict[str, Any], message: str, classifier_folder: Path
) -> None:
    path = classifier_folder / "config.json"
    described = json.loads(path.read_text())
    described["classifier"].update(values)
    path.write_text(json.dumps(described))
    with Allocations() as made, pytest.raises(ValueError, match=message):
        load_model(classifier_folder)
    assert made.largest < 100_000


@pytest.mark.parametrize("key", ["num_classes", "pool"])
def test_classifier_facts_must_all_be_there(key: str, classifier_folder: Path) -> None:
    path = classifier_folder / "config.json"
    described = json.loads(path.read_text())
    del described["classifier"][key]
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=key):
        load_model(classifier_folder)


def test_the_allocation_record_sees_a_good_load(folder: Path) -> None:
    with Allocations() as made:
        load_model(folder)
    assert made.largest >= 48 * 12


@pytest.mark.parametrize("name", ["config.json", "preprocess.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe{}", "is no JSON"),
        (b"\x80\x04K\x01.", "is no JSON"),
        (b"[1, 2]", "holds list, expected an object"),
        (b"null", "holds NoneType, expected an object"),
        (b'"text"', "holds str, expected an object"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"a":' * 100_000, "is no JSON"),
        (b'{"dim": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b" " * (2 << 20), "larger than 1048576 bytes"),
    ],
    ids=["empty", "cut", "utf-16", "pickle", "list", "null", "text", "deep", "deep 2", "9s", "big"],
)
def test_damaged_json_is_refused(content: bytes, message: str, name: str, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "crate-mae/2"}, "format is 'crate-mae/2', this version reads 'crate-mae/1'"),
        ({"format": None}, "format is None"),
        ({"model": "os.system"}, "names model 'os.system'; known are CrateMAE, CrateEncoder, "),
        ({"model": ["CrateMAE"]}, "names model"),
        ({"model": "CrateClassifier"}, "has no object 'classifier'"),
        ({"config": [1]}, "has no object 'config'"),
        ({"config": None}, "has no object 'config'"),
    ],
    ids=str,
)
def test_descriptions_of_something_else_are_refused(
    change: dict[str, Any], message: str, folder: Path
) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **change}))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"means": [0, 0, 0]}, "unknown Preprocess field 'means'"),
        ({"std": [1, 1, 0]}, "above 0"),
        ({"std": [1, 1, math.nan]}, "above 0"),
        ({"mean": [0, 0, math.inf]}, "finite"),
        ({"mean": [0, 0, 10**400]}, "too large"),
        ({"mean": ["a", "b", "c"]}, "could not convert"),
        ({"mean": 0.5}, "not iterable"),
        ({"size": [10**9, 10**9]}, "whole numbers from 1 to"),
        ({"size": ["8", "8"]}, "whole numbers from 1 to"),
        (
            {"channels": 1, "mean": [0], "std": [1], "low": [0], "high": [1]},
            "preprocessing for 1 channels, model for 3",
        ),
    ],
    ids=str,
)
def test_preprocessing_of_strangers_is_refused(
    values: dict[str, Any], message: str, folder: Path
) -> None:
    facts = json.loads((folder / "preprocess.json").read_text())
    (folder / "preprocess.json").write_text(json.dumps({**facts, **values}))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


# --- names and the Hub ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/no/such/folder", "../x/y", "https://x/y"])
def test_unknown_places_are_refused(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no weights at {re.escape(name)}: expected"):
        load_model(name)


def test_a_file_is_no_weights_folder(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it is a file, and weights are a folder"):
        load_model(folder / "model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the Hub: "remote" is its content, "asked" what was asked of it."""
    state: dict[str, Any] = {"asked": [], "remote": None, "error": None}

    def snapshot_download(name: str, **options: Any) -> str:
        state["asked"].append((name, options))
        if state["error"] is not None:
            raise state["error"]
        local = tmp_path / "cache"
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir()
        for path in state["remote"].iterdir():
            if path.name in options["allow_patterns"]:
                shutil.copy(path, local)
        return str(local)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return state


def test_hub_gives_three_files_and_no_code(hub: dict[str, Any], folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    hub["remote"] = folder
    loaded = load_model("some-one/crate.mae_tiny", revision="v1")
    assert_same_tensors(loaded, make(tiny()))
    ((name, options),) = hub["asked"]
    assert name == "some-one/crate.mae_tiny"
    assert options["revision"] == "v1"
    assert set(options["allow_patterns"]) == FILES


def test_hub_repository_without_a_file_is_refused(hub: dict[str, Any], folder: Path) -> None:
    (folder / "preprocess.json").unlink()
    hub["remote"] = folder
    message = "Hub repository some/one is no weights folder: preprocess.json missing"
    with pytest.raises(FileNotFoundError, match=message):
        load_model("some/one")


@pytest.mark.parametrize("error", ["offline", "refused", "silent"])
def test_without_a_network_the_way_out_is_named(error: str, hub: dict[str, Any]) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub["error"] = {
        "offline": LocalEntryNotFoundError("no connection\nand much more"),
        "refused": ConnectionError("connection refused"),
        "silent": OSError(),
    }[error]
    reason = {"offline": "no connection", "refused": "connection refused", "silent": "OSError"}
    with pytest.raises(FileNotFoundError) as caught:
        load_model("some/one")
    text = str(caught.value)
    assert f"some/one is no local folder, and the Hub did not give it: {reason[error]}." in text
    assert "Without a network, copy model.safetensors, config.json, preprocess.json into" in text
    assert "\n" not in text


def test_a_local_folder_is_preferred_to_the_hub(
    hub: dict[str, Any], tmp_path: Path, folder: Path
) -> None:
    shutil.copytree(folder, tmp_path / "some" / "one")
    assert_same_tensors(load_model("some/one"), make(tiny()))
    assert hub["asked"] == []


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    folder = save_model(make(tiny()), tmp_path / "weights")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_configuration_that_leaves_a_field_out_is_refused(tmp_path: Path) -> None:
    folder = save_model(make(tiny()), tmp_path / "weights")
    for name, section, key in (
        ("config.json", "config", "step_size"),
        ("preprocess.json", None, "std"),
    ):
        path = folder / name
        whole = path.read_text()
        values = json.loads(whole)
        del (values if section is None else values[section])[key]
        path.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=f"lacks {key}"):
            load_model(folder)
        path.write_text(whole)
    load_model(folder)


def test_going_to_half_and_back_keeps_the_positions(tmp_path: Path) -> None:
    model = make(tiny())
    positions = model.encoder.positions.clone()
    model.half().float()
    assert torch.equal(model.encoder.positions, positions)
    copy = load_model(save_model(model, tmp_path / "weights"))
    images = images_for(model.config)
    with torch.no_grad():
        assert torch.equal(model.eval().encode(images), copy.encode(images))


def test_what_is_assumed_of_images_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model of one's own loop: facts given to either function are kept, none are not silent."""
    facts = Preprocess(size=(32, 32), channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    told = build_model("debug", preprocess=facts)
    assert load_model(save_model(told, tmp_path / "a")).preprocess == facts
    silent = build_model("debug")
    assert load_model(save_model(silent, tmp_path / "b", preprocess=facts)).preprocess == facts
    silent.preprocess = Preprocess.identity(silent.config)  # said, even if it is nothing
    save_model(silent, tmp_path / "c")
    assert not caplog.records
    assumed = load_model(save_model(build_model("debug"), tmp_path / "d"))
    assert assumed.preprocess == Preprocess.identity(assumed.config)
    assert "(mean 0, std 1) is assumed" in caplog.text
    assert str(tmp_path / "d") in caplog.text
    classifier = CrateClassifier.from_pretrained(told, num_classes=2)
    caplog.clear()
    assert load_model(save_model(classifier, tmp_path / "e")).preprocess == facts
    assert not caplog.records
    unsaid = CrateClassifier.from_pretrained(build_model("debug"), num_classes=2)
    save_model(unsaid, tmp_path / "g")
    assert "(mean 0, std 1) is assumed" in caplog.text
    grey = replace(facts, channels=1, mean=(0.5,), std=(0.5,), low=(), high=())
    with pytest.raises(ValueError, match="images of 1 channels"):
        build_model("debug", preprocess=grey)
    with pytest.raises(ValueError, match="images of 1 channels"):
        save_model(told, tmp_path / "f", preprocess=grey)
    assert not (tmp_path / "f").exists()


def test_files_without_later_fields_compute_what_they_did(tmp_path: Path) -> None:
    model = make(tiny()).eval()
    save_model(model, tmp_path / "weights")
    described = json.loads((tmp_path / "weights" / "config.json").read_text("utf-8"))
    assert described["config"].keys() > ModelConfig.ADDED
    for name in ModelConfig.ADDED:
        del described["config"][name]
    (tmp_path / "weights" / "config.json").write_text(json.dumps(described), encoding="utf-8")
    again = load_model(tmp_path / "weights")
    assert again.config == model.config
    images = images_for(model.config)
    assert torch.equal(again.encode(images), model.encode(images))
