"""Measures of features while they train: as measured afterwards, without effect on the run."""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from report_cases import read_page
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from training_runs import final_state, records, small_config

from crate_mae.batches.config import VALIDATION_SEED, DataConfig
from crate_mae.evaluation.features import Features, extract_features
from crate_mae.report.page import write_report
from crate_mae.sources.address import open_source
from crate_mae.sources.arrays import ArraySource
from crate_mae.sources.base import ImageSource, random_subset
from crate_mae.sources.splits import split_off
from crate_mae.training.config import PretrainConfig, RecordConfig
from crate_mae.training.objectives import ObjectiveConfig
from crate_mae.training.online import RANK, SHARE, OnlineMeasures, accuracies
from crate_mae.training.pretrain import _callbacks, pretrain
from crate_mae.weights.weights_folder import load_autoencoder

MORE_HELD_OUT = replace(small_config().data, val_share=0.2)
NAMES = ("val/effective_rank", "val/coding_rate_share", "val/knn", "val/probe")


def config_of(every: int) -> PretrainConfig:
    config = small_config()
    return replace(config, record=replace(config.record, measure_epochs=every))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online") / "run"
    pretrain(config_of(2), folder)
    return folder


def measured(folder: Path) -> list[dict[str, float]]:
    return [record for record in records(folder) if RANK in record]


def test_they_are_measured_when_due_and_at_the_end(run: Path) -> None:
    """Rank and rate at each validation, accuracies every second epoch and at the end."""
    assert [record["epoch"] for record in measured(run)] == [0, 1, 2]
    assert [record["epoch"] for record in records(run) if "val/knn" in record] == [1, 2]
    assert all(name in record for record in measured(run)[1:] for name in NAMES)
    (told,) = re.findall(
        r"features measured in ([\d.]+) s: .* each 2 epochs", (run / "log.txt").read_text()
    )
    assert 0 <= float(told) < 60


def test_progress_and_report_show_them_and_the_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config_of(1), objective=ObjectiveConfig(gamma=0.5))
    pretrain(config, tmp_path / "run")
    last = {key: value for record in records(tmp_path / "run") for key, value in record.items()}
    line = capsys.readouterr().out.splitlines()[-1]
    for name in NAMES:
        assert f"{name}={last[name]:.4f}" in line
    write_report(tmp_path / "run", measure=False)
    table = read_page(tmp_path / "run" / "report.html").table("The same in numbers")
    shown = dict(zip(table.heads, table.values[-1], strict=True))
    for head, name in (
        ("R", "train/coding_rate"), ("Max. R", "train/largest_rate"), ("Rank", NAMES[0]),
        ("R / max. R, held-out", NAMES[1]), ("kNN", NAMES[2]), ("Probe", NAMES[3]),
    ):  # fmt: skip
        assert float(str(shown[head])) == last[name], head


def test_the_run_is_the_same_without_them(run: Path, tmp_path: Path) -> None:
    pretrain(config_of(0), tmp_path / "unwatched")
    assert measured(tmp_path / "unwatched") == []
    first, second = final_state(run), final_state(tmp_path / "unwatched")
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_they_are_what_is_measured_afterwards(run: Path) -> None:
    """Rank and rate from singular values in numpy, of features of the weights that were saved."""
    model = load_autoencoder(run / "weights")
    source = random_subset(cast("ImageSource", open_source("digits", split="train")), 200)
    _, held_out = split_off(source, 0.1, VALIDATION_SEED, None)
    values = extract_features(model, held_out).values.double().numpy()
    singular = np.linalg.svd(values, compute_uv=False)
    shares = singular / singular.sum()
    rank = np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    n, d = unit.shape
    eigenvalues = np.linalg.svd(unit, compute_uv=False) ** 2
    rate = 0.5 * np.log1p(d / (n * 0.25) * eigenvalues).sum()
    largest = min(n, d) / 2 * np.log1p(d / (min(n, d) * 0.25))
    last = measured(run)[-1]
    assert last[RANK] == pytest.approx(rank, rel=1e-3)
    assert last[SHARE] == pytest.approx(rate / largest, rel=1e-3)


def features(values: Tensor, labels: Tensor | None) -> Features:
    return Features(
        values=values,
        labels=labels,
        names=[str(i) for i in range(len(values))],
        class_names=("a", "b", "c"),
        pool="mean",
        unreadable=[],
    )


def test_accuracies_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=generator)
    values = torch.randn(300, 8, generator=generator) + 1.2 * torch.eye(3, 8)[labels]
    train, test = features(values[:200], labels[:200]), features(values[200:], labels[200:])
    found = accuracies(train, test)

    unit = torch.nn.functional.normalize(values).numpy()
    knn = KNeighborsClassifier(20, metric="cosine", weights=lambda gap: np.exp(-gap / 0.07))
    knn.fit(unit[:200], labels[:200].numpy())
    assert found["val/knn"] == pytest.approx(knn.score(unit[200:], labels[200:].numpy()), abs=1e-9)
    mean, std = values[:200].mean(0), values[:200].std(0, unbiased=False)
    scaled = ((values - mean) / std).numpy()
    # mean cross-entropy + penalty / 2 |W|^2 is C = 1 / (n penalty) there.
    probe = LogisticRegression(C=1 / (200 * 1e-2), max_iter=1000, tol=1e-8)
    probe.fit(scaled[:200], labels[:200].numpy())
    expected = probe.score(scaled[200:], labels[200:].numpy())
    assert found["val/probe"] == pytest.approx(expected, abs=0.011)


def test_images_without_a_label_do_not_count() -> None:
    values, labels = torch.randn(20, 4), torch.arange(20) % 3
    known = accuracies(features(values, labels), features(values, labels))
    extra = torch.cat([labels, torch.full((5,), -1)])
    more = features(torch.cat([values, torch.randn(5, 4)]), extra)
    assert accuracies(more, more) == known
    assert accuracies(features(values, None), more) == {}


def test_without_labels_there_are_rank_and_rate(tmp_path: Path) -> None:
    images = (np.random.default_rng(0).random((60, 8, 8)) * 255).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    data = DataConfig(source=f"npy:{tmp_path / 'images.npy'}", workers=0, val_share=0.2)
    config = replace(config_of(1), data=data, optim=replace(small_config().optim, batch_size=16))
    pretrain(config, tmp_path / "run")
    last = measured(tmp_path / "run")[-1]
    assert RANK in last
    assert SHARE in last
    assert "val/knn" not in last


def test_rank_and_rate_stay_where_accuracies_cannot_be_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With training images of one class alone there is no probe, at every due epoch."""
    images = (np.random.default_rng(0).random((60, 8, 8)) * 255).astype(np.uint8)
    train, held_out = (
        ArraySource(name, part, prefix=name, labels=[0] * len(part), class_names=("a", "b"))
        for name, part in (("train", images[:44]), ("val", images[44:]))
    )
    optim = replace(small_config().optim, batch_size=16)
    pretrain(replace(config_of(1), optim=optim), tmp_path / "one", dataset=train,
             val_dataset=held_out)  # fmt: skip
    told = [text for text in caplog.messages if "not measured at epoch" in text]
    assert [text.partition(":")[0] for text in told] == [
        f"neighbours and probe not measured at epoch {epoch}" for epoch in (1, 2, 3)
    ]
    assert all("at least two classes" in text for text in told)
    pretrain(replace(config_of(9), optim=optim), tmp_path / "seldom", dataset=train,
             val_dataset=held_out)  # fmt: skip
    # As with no accuracies due, up to the last epoch: there the other run has them due as well.
    for one, other in zip(measured(tmp_path / "one"), measured(tmp_path / "seldom"), strict=True):
        assert (one["epoch"], one[RANK], one[SHARE]) == (other["epoch"], other[RANK], other[SHARE])
        assert "val/knn" not in one
    assert len(measured(tmp_path / "one")) == 3


def test_collapse_is_warned_of_once_with_what_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At a rate that is far too high, features of all images become alike."""
    config = config_of(2)
    config = replace(config, optim=replace(config.optim, base_lr=0.2), data=MORE_HELD_OUT)
    pretrain(config, tmp_path / "run")
    ranks = [record[RANK] for record in measured(tmp_path / "run")]
    assert ranks == sorted(ranks, reverse=True)
    (warning,) = [text for text in caplog.messages if "closer together" in text]
    assert f"effective rank {ranks[0]:.3g}, untrained" in warning
    assert "set objective.gamma to 0.1 or lower the learning rate" in warning


def test_the_warning_begins_anew_when_features_have_recovered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    measures = OnlineMeasures(every=1, eps_squared=0.25, seed=0, advice="do this")
    measures.untrained = {RANK: 10.0, SHARE: 0.5}
    measures._images = 32
    with caplog.at_level(logging.WARNING, logger="crate_mae"):
        measures._warn_of_collapse({RANK: 11.0, SHARE: 0.6}, 1)
        assert not caplog.records
        measures._warn_of_collapse({RANK: 4.0, SHARE: 0.6}, 2)
        measures._warn_of_collapse({RANK: 3.0, SHARE: 0.6}, 3)
        measures._warn_of_collapse({RANK: 9.9, SHARE: 0.6}, 4)  # nearly as untrained: no news
        measures._warn_of_collapse({RANK: 9.0, SHARE: 0.6}, 5)
        assert len(caplog.records) == 1
        measures._warn_of_collapse({RANK: 11.0, SHARE: 0.6}, 6)
        measures._warn_of_collapse({RANK: 11.0, SHARE: 0.495}, 7)
        assert len(caplog.records) == 1
        measures._warn_of_collapse({RANK: 11.0, SHARE: 0.4}, 8)
        assert len(caplog.records) == 2
        measures._images = 31
        measures._warned = False
        measures._warn_of_collapse({RANK: 1.0, SHARE: 0.1}, 9)
        assert len(caplog.records) == 2, "so few images say nothing"
    assert "effective rank 4, untrained 10" in caplog.messages[0]
    assert "coding rate" not in caplog.messages[0].split("(")[1].split(")")[0]
    assert "share of the largest coding rate 0.4, untrained 0.5" in caplog.messages[1]
    assert caplog.messages[1].endswith("If it stays so, do this")


def test_first_epochs_of_a_long_run_are_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same run, with so many epochs to come that its first ones are the begin."""
    config = config_of(2)
    optim = replace(config.optim, base_lr=0.2, epochs=40, warmup_epochs=1)
    pretrain(replace(config, optim=optim, data=MORE_HELD_OUT), tmp_path / "run", stop_after=15)
    assert measured(tmp_path / "run")
    assert not [text for text in caplog.messages if "closer together" in text]


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_what_helps_depends_on_the_weight_that_is_set(gamma: float, tmp_path: Path) -> None:
    config = replace(config_of(2), objective=ObjectiveConfig(gamma=gamma))
    _, measures = _callbacks(config, tmp_path)
    assert isinstance(measures, OnlineMeasures)
    told = "raise objective.gamma above 0.3" if gamma else "set objective.gamma to 0.1"
    assert measures.advice == f"{told} or lower the learning rate"


def test_a_number_of_epochs_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"record\.measure_epochs must be at least 0, not -1"):
        RecordConfig(measure_epochs=-1)
