"""Features: the same as calling the model by hand, whatever the batch; files give them back."""

import json
import statistics
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from crate_mae.batches.transforms import fit
from crate_mae.cli import main
from crate_mae.evaluation.feature_files import (
    check_target,
    load_facts,
    load_features,
    load_pair,
    save_features,
)
from crate_mae.evaluation.features import (
    MAX_PIXEL_VALUES,
    FeaturePool,
    Features,
    extract_all,
    extract_features,
    raw_pixels,
    reduced,
)
from crate_mae.evaluation.metrics import few_shot, labelled_pair
from crate_mae.models.autoencoder import CrateMAE, build_model
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import Preprocess
from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import ImageFacts, Sample, UnreadableImage

SUFFIXES = [".safetensors", ".npz", ".parquet"]


class Made(ImageSource):
    """Random images in memory, some of them broken or without a label."""

    def __init__(
        self, count: int, *, broken: tuple[int, ...] = (), unlabelled: tuple[int, ...] = ()
    ) -> None:
        self.address, self.split, self.class_names = "made", None, ("zero", "one", "two")
        self.broken, self.unlabelled = broken, unlabelled
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (count, 3, 9, 12), generator=generator).byte()

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Sample:
        if index in self.broken:
            raise UnreadableImage(self.name(index), "made to break")
        return Sample(image=self.images[index], label=self.label(index), name=self.name(index))

    def name(self, index: int) -> str:
        return f"{index} é $.png"

    def label(self, index: int) -> int | None:
        return None if index in self.unlabelled else index % 3

    def facts(self, index: int) -> ImageFacts:
        return ImageFacts("RGB", *self.images[index].shape[1:])


@pytest.fixture
def model() -> CrateMAE:
    torch.manual_seed(0)
    model = build_model("debug", image_size=8, patch_size=4)
    model.preprocess = Preprocess(size=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return model


def random_features(
    n: int = 5, *, shape: tuple[int, ...] = (4,), labelled: bool = True
) -> Features:
    generator = torch.Generator().manual_seed(1)
    return Features(
        values=torch.randn(n, *shape, generator=generator),
        labels=torch.arange(n) % 2 if labelled else None,
        names=[f"a/{i} é.png" for i in range(n)],
        class_names=("cat", "dog") if labelled else None,
        pool="mean",
        unreadable=[("b.png", "the file is empty")],
    )


@pytest.mark.parametrize("pool", ["mean", "cls", "both", "mean-std", "layers", "tokens"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_features_are_what_the_model_encodes(
    model: CrateMAE, pool: FeaturePool, batch_size: int
) -> None:
    source, twin = Made(7), deepcopy(model).double()
    features = extract_features(model, source, pool=pool, batch_size=batch_size)
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)[:, None, None]
    std = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)[:, None, None]
    for index in range(7):
        pixels = fit(source.images[index], (8, 8)).double() / 255
        tokens = twin.encode(((pixels - mean) / std)[None])[0]
        mean_token = tokens[1:].mean(0)
        by_layer = twin.layer_tokens(((pixels - mean) / std)[None], [1, 2])
        expected = {
            "mean": mean_token,
            "cls": tokens[0],
            "both": torch.cat([tokens[0], mean_token]),
            "mean-std": statistics_of(tokens),
            "layers": torch.cat(
                [statistics_of(each) for each in (by_layer[1][0], by_layer[2][0], tokens)]
            ),
            "tokens": tokens,
        }[pool]
        torch.testing.assert_close(features.values[index].double(), expected, atol=1e-5, rtol=1e-5)
    assert features.labels is not None
    assert features.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert features.names[1] == "1 é $.png"
    assert features.class_names == ("zero", "one", "two")
    assert features.pool == pool
    assert features.values.dtype == torch.float32
    assert not features.values.is_inference()
    assert not features.values.requires_grad


def statistics_of(tokens: torch.Tensor) -> torch.Tensor:
    """Mean, then standard deviation, of patch tokens (1 + L, d), number by number."""
    columns = [[float(value) for value in column] for column in tokens[1:].detach().T]
    means = [statistics.fmean(column) for column in columns]
    return torch.tensor([*means, *map(statistics.pstdev, columns)], dtype=torch.float64)


def test_the_pool_of_layers_in_the_middle_and_beside_others(model: CrateMAE) -> None:
    source = Made(3)
    found = extract_all(model, source, pools=("mean-std", "layers", "mean"), layers=(0, 1, None))
    for layer, parts in {0: (0,), 1: (1,), None: (1, 2, None)}.items():
        expected = [extract_features(model, source, pool="mean-std", layer=i) for i in parts]
        assert torch.equal(
            found[layer, "layers"].values, torch.cat([each.values for each in expected], dim=1)
        )
        whole = found[layer, "mean-std"].values
        torch.testing.assert_close(whole[:, : whole.shape[1] // 2], found[layer, "mean"].values)


def test_one_patch_has_no_spread() -> None:
    model = build_model("debug", image_size=4, patch_size=4)
    found = extract_features(model, Made(2), pool="mean-std").values
    width = model.config.dim
    assert found.shape == (2, 2 * width)
    assert torch.equal(found[:, width:], torch.zeros(2, width))


def test_all_layers_and_pools_come_from_one_pass(
    model: CrateMAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    embed = model.encoder.embed

    def counted(images: torch.Tensor) -> torch.Tensor:
        passes.append(len(images))
        return embed(images)

    with monkeypatch.context() as patch:
        patch.setattr(model.encoder, "embed", counted)
        found = extract_all(model, Made(5), pools=("mean", "cls", "both"), layers="all")
    assert passes == [5]
    assert list(found) == [
        (layer, pool) for layer in (0, 1, 2, None) for pool in ("mean", "cls", "both")
    ]
    mean = torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    std = torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    source = Made(5)
    images = torch.stack([(fit(i, (8, 8)) / 255 - mean) / std for i in source.images])
    with torch.no_grad():
        tokens = model.encoder.embed(images)
        for index, layer in enumerate(model.encoder.layers):
            expected = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
            expected["both"] = torch.cat([expected["cls"], expected["mean"]], dim=1)
            for pool, rows in expected.items():
                torch.testing.assert_close(found[index, pool].values, rows)
                assert (found[index, pool].layer, found[index, pool].pool) == (index, pool)
            tokens = layer(tokens)
        torch.testing.assert_close(found[2, "cls"].values, tokens[:, 0])
        torch.testing.assert_close(found[None, "cls"].values, model.encode(images)[:, 0])
    assert not torch.allclose(found[2, "cls"].values, found[None, "cls"].values)


def test_layers_that_do_not_exist(model: CrateMAE) -> None:
    with pytest.raises(ValueError, match=r"layers \[3\] do not exist.*0 .* to 2"):
        extract_all(model, Made(1), layers=(3, 0))
    with pytest.raises(ValueError, match="no layer"):
        extract_all(model, Made(1), layers=())
    assert extract_features(model, Made(1), layer=-1).layer is None


def test_few_shots_keep_rows_labels_and_names_together() -> None:
    whole = random_features(20)
    few = few_shot(whole, 3, 1)
    assert few.labels is not None
    assert sorted(few.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert whole.labels is not None
    for row, label, name in zip(few.values, few.labels, few.names, strict=True):
        index = whole.names.index(name)
        assert torch.equal(row, whole.values[index])
        assert label == whole.labels[index]
    with pytest.raises(ValueError, match="class cat has 10, class dog has 10"):
        few_shot(whole, 11, 0)
    with pytest.raises(ValueError, match="no image has a label"):
        few_shot(random_features(labelled=False), 1, 0)


def test_a_pair_of_files_must_be_made_alike(tmp_path: Path) -> None:
    def written(name: str, weights: str, layer: int | None) -> Path:
        features = Features(**{**vars(random_features()), "layer": layer})
        return save_features(
            features, tmp_path / name, preprocess=Preprocess(size=(8, 8)), weights_hash=weights
        )

    first, second = written("a.safetensors", "x", 1), written("b.safetensors", "x", 1)
    train, test, facts = load_pair(first, second)
    assert torch.equal(train.values, test.values)
    assert (train.layer, facts["layer"], facts["weights_sha256"]) == (1, 1, "x")
    other = written("c.safetensors", "y", None)
    with pytest.raises(ValueError, match="differ in weights_sha256, layer"):
        load_pair(first, other)


def test_a_pair_of_unknown_weights_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def written(name: str, add: float, weights: str | None) -> Path:
        features = random_features()
        features = Features(**{**vars(features), "values": features.values + add})
        return save_features(
            features, tmp_path / name, preprocess=Preprocess(size=(8, 8)), weights_hash=weights
        )

    first, second = written("a.safetensors", 0, None), written("b.safetensors", 1, None)
    load_pair(first, second)
    assert f"neither {first} nor {second} says which weights made it" in caplog.text
    with pytest.raises(ValueError, match="differ in weights_sha256"):
        load_pair(first, written("c.safetensors", 1, "x"))


def test_two_extractions_are_equal_and_leave_the_model_as_it_was(model: CrateMAE) -> None:
    model.train()
    model.encoder.eval()
    first = extract_features(model, Made(5))
    state = torch.get_rng_state()
    second = extract_features(model, Made(5))
    assert torch.equal(first.values, second.values)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert model.decoder.training
    assert not model.encoder.training


def test_flags_are_restored_after_an_error(model: CrateMAE) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyError(done, total)

    model.train()
    with pytest.raises(KeyError):
        extract_features(model, Made(2), progress=fail)
    assert model.training


def test_broken_images_are_skipped_and_named(model: CrateMAE) -> None:
    heard: list[tuple[int, int]] = []
    source = Made(6, broken=(0, 1, 4))
    features = extract_features(
        model, source, batch_size=2, progress=lambda done, total: heard.append((done, total))
    )
    assert features.names == [source.name(i) for i in (2, 3, 5)]
    assert features.unreadable == [(source.name(i), "made to break") for i in (0, 1, 4)]
    assert len(features.values) == 3
    assert heard == [(2, 6), (4, 6), (6, 6)]
    whole = extract_features(model, Made(6))
    torch.testing.assert_close(features.values, whole.values[[2, 3, 5]])


def test_nothing_readable_is_an_error(model: CrateMAE) -> None:
    with pytest.raises(ValueError, match=r"none of the 2 images of made.*made to break"):
        extract_features(model, Made(2, broken=(0, 1)))


def test_missing_labels_are_marked(model: CrateMAE) -> None:
    some = extract_features(model, Made(4, unlabelled=(1,)))
    assert some.labels is not None
    assert some.labels.tolist() == [0, -1, 2, 0]
    assert extract_features(model, Made(2, unlabelled=(0, 1))).labels is None


def test_wrong_arguments(model: CrateMAE) -> None:
    with pytest.raises(
        ValueError, match=r"pool must be one of mean, .*, both, mean-std, layers, tokens, not 'max'"
    ):
        extract_features(model, Made(1), pool="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        extract_features(model, Made(1), batch_size=0)


def test_classifiers_have_features_too(model: CrateMAE) -> None:
    classifier = CrateClassifier.from_pretrained(model, num_classes=3)
    torch.testing.assert_close(
        extract_features(classifier, Made(3)).values, extract_features(model, Made(3)).values
    )


def test_raw_pixels_are_scaled_and_flattened() -> None:
    source = open_source("digits", limit=5)
    assert isinstance(source, ImageSource)
    preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.25,), std=(0.5,))
    pixels = raw_pixels(source, preprocess, batch_size=2)
    assert pixels.pool == "pixels"
    for index in range(5):
        image = source.load(index).image
        scaled = image.double() / 255 if image.dtype == torch.uint8 else image.double()
        expected = ((scaled - 0.25) / 0.5).flatten()
        torch.testing.assert_close(pixels.values[index].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_files_give_the_features_back(
    tmp_path: Path, labelled: bool, shape: tuple[int, ...]
) -> None:
    features = random_features(shape=shape, labelled=labelled)
    path = tmp_path / "new" / "out.safetensors"
    preprocess = Preprocess(size=(8, 4), mean=(0.1, 0.2, 0.3))
    assert save_features(features, path, preprocess=preprocess, weights_hash="abc") == path
    loaded = load_features(path)
    assert torch.equal(loaded.values, features.values)
    if features.labels is None:
        assert loaded.labels is None
    else:
        assert loaded.labels is not None
        assert torch.equal(loaded.labels, features.labels)
        assert loaded.labels.dtype == torch.int64
    assert loaded.names == features.names
    assert loaded.class_names == features.class_names
    assert loaded.pool == "mean"
    assert loaded.unreadable == features.unreadable
    facts = load_facts(path)
    assert Preprocess.from_dict(facts["preprocess"]) == preprocess
    assert facts["weights_sha256"] == "abc"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_files_are_readable_without_this_package(tmp_path: Path) -> None:
    features = random_features()
    for suffix in SUFFIXES:
        path = tmp_path / f"out{suffix}"
        save_features(features, path, preprocess=Preprocess(size=(8, 8)), weights_hash=None)
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    np.testing.assert_array_equal(np.array(table["values"], np.float32), features.values.numpy())
    assert table["label"] == [0, 1, 0, 1, 0]
    assert table["name"] == features.names
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["values"], features.values.numpy())
        assert arrays["names"].tolist() == features.names
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["crate_mae"])["class_names"] == ["cat", "dog"]


def test_test_rows_that_are_training_rows_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def written(name: str, features: Features) -> Path:
        return save_features(
            features, tmp_path / name, preprocess=Preprocess(size=(8, 8)), weights_hash="x"
        )

    train = random_features()
    same_names = Features(**{**vars(train), "values": train.values + 1})
    load_pair(written("a.safetensors", train), written("b.safetensors", same_names))
    assert not caplog.records
    one = train.values + 1
    one[2] = train.values[2]
    load_pair(
        tmp_path / "a.safetensors",
        written("c.safetensors", Features(**{**vars(train), "values": one})),
    )
    assert "1 of 5 test images are training images" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.arange(3)}, r"labels are torch\.int64 \(3,\)"),
        ({"labels": torch.arange(5) / 2}, r"labels are torch\.float32"),
        ({"names_json": torch.tensor(list(b'["a"]'), dtype=torch.uint8)}, "1 names for 5 rows"),
        ({"values": torch.ones((5, 4)).double()}, r"values are torch\.float64"),
        ({"facts": {"format": "other/1"}}, "format 'other/1' is not"),
        ({"facts": {"unreadable": None}}, "does not say its unreadable"),
        ({"facts": {"class_names": None}}, "does not say its class_names"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = save_features(
        random_features(),
        tmp_path / "a.safetensors",
        preprocess=Preprocess(size=(8, 8)),
        weights_hash="x",
    )
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["crate_mae"]) | change.get("facts", {})
    tensors = load_file(path) | {key: value for key, value in change.items() if key != "facts"}
    given = {key: value for key, value in facts.items() if value is not None}  # None: taken out
    save_file(tensors, path, metadata={"crate_mae": json.dumps(given)})
    with pytest.raises(ValueError, match=message):
        load_features(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_targets_are_checked_before_work(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"out{suffix}"
    assert check_target(path) == path
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists"):
        check_target(path)
    with pytest.raises(FileExistsError, match="exists"):
        save_features(
            random_features(), path, preprocess=Preprocess(size=(8, 8)), weights_hash=None
        )
    assert path.read_bytes() == b"mine"
    save_features(
        random_features(),
        path,
        preprocess=Preprocess(size=(8, 8)),
        weights_hash=None,
        overwrite=True,
    )
    assert path.read_bytes() != b"mine"
    with pytest.raises(ValueError, match=r"\.safetensors, \.npz, \.parquet"):
        check_target(tmp_path / "out.csv")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        check_target(tmp_path / f"folder{suffix}", overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_target(path / "below" / f"out{suffix}")
    with monkeypatch.context() as patch:  # the superuser may write anywhere
        patch.setattr("os.access", Mock(return_value=False))
        with pytest.raises(PermissionError, match="cannot be written to"):
            check_target(tmp_path / f"new{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")

    def fail(_: Path, __: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_features(
            random_features(),
            path,
            preprocess=Preprocess(size=(8, 8)),
            weights_hash=None,
            overwrite=True,
        )
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"not a feature file at all")
    with pytest.raises(ValueError, match="no feature file"):
        load_features(path)
    with pytest.raises(FileNotFoundError):
        load_features(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".txt"])
def test_features_are_read_from_safetensors_alone(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("train", "test")]
    for path in paths:
        path.write_bytes(b"never opened")
        with pytest.raises(ValueError, match=r"extract them again with --out \w+\.safetensors"):
            load_features(path)
    if suffix in SUFFIXES:  # what is named so is taken for features, not for weights
        assert main(["probe", *map(str, paths)]) == 1
        assert "features are read from .safetensors files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"labels": None}, "no labels"),
        (lambda f: {"values": f.values[:, None]}, "one row per image"),
        (lambda f: {"values": f.values[:0], "labels": f.labels[:0]}, "empty"),
        (lambda f: {"labels": f.labels - 1}, "3 of 5 training images have no label"),
        (lambda f: {"labels": f.labels * 0}, "all training images are of class 0"),
        (lambda f: {"values": f.values / 0}, "a/0 é.png are not finite"),
        (lambda f: {"values": f.values[:, :2]}, "2 wide, test features 4"),
    ],
)
def test_what_cannot_be_measured(
    change: Callable[[Features], dict[str, object]], message: str
) -> None:
    good = random_features()
    bad = Features(**{**vars(good), **change(good)})
    with pytest.raises(ValueError, match=message):
        labelled_pair(bad, good)


@given(
    height=st.integers(1, 300), width=st.integers(1, 300), channels=st.sampled_from([1, 3, 7])
)  # fmt: skip
def test_many_pixels_are_reduced_in_shape(height: int, width: int, channels: int) -> None:
    given = Preprocess(size=(height, width), channels=channels, mean=(0.0,) * channels,
                       std=(1.0,) * channels)  # fmt: skip
    found = reduced(given)
    values = found.size[0] * found.size[1] * channels
    if height * width * channels <= MAX_PIXEL_VALUES:
        assert found == given
        return
    assert values <= max(MAX_PIXEL_VALUES, channels * max(height, width))
    if min(found.size) > 8:
        assert values > 0.7 * MAX_PIXEL_VALUES
        assert found.size[0] / found.size[1] == pytest.approx(height / width, rel=0.15)
