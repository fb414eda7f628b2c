"""One frozen-feature measure on a model, on its randomly initialised twin and on raw pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from crate_mae.data.module import split_off
from crate_mae.data.sources import ImageSource, open_source, random_subset
from crate_mae.data.streams import NoSuchSplitError
from crate_mae.evaluation.features import Features, extract_features, raw_pixels
from crate_mae.evaluation.knn import KnnResult, knn
from crate_mae.evaluation.probe import ProbeResult, linear_probe
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier, Pool

Method = Literal["probe", "knn"]
Progress = Callable[[str], Callable[[int, int], None] | None]

TEST_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a comparison."""

    subject: str
    method: Method
    dim: int
    """Width of the features."""
    tested_on: str
    """Address and split of the test images."""
    result: ProbeResult | KnnResult

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        facts: dict[str, Any] = {"subject": self.subject, "method": self.method, "dim": self.dim}
        facts["tested_on"] = self.tested_on
        return {**facts, **self.result.to_dict()}


def open_pair(
    address: str,
    *,
    train_split: str | None = None,
    test_address: str | None = None,
    test_split: str | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
) -> tuple[ImageSource, ImageSource]:
    """(training, test) sources of labelled images.

    Without a test address the test split of the same address is used, else its validation split;
    of an address without either a random fifth is held out, the same for every model. Raises
    ValueError for unlabelled images, streams, and two sources with different classes.
    """
    train = _labelled(address, train_split)
    if test_address is not None or test_split is not None:
        test = _labelled(test_address or address, test_split)
    else:
        for split in ("test", "validation"):
            try:
                test = _labelled(address, split)
                break
            except NoSuchSplitError:
                continue
        else:
            train, test = split_off(train, TEST_SHARE, seed)
    if train.class_names != test.class_names:
        raise ValueError(
            f"the classes of {train.address} and {test.address} differ:"
            f" {train.class_names} and {test.class_names}"
        )
    cut = [
        source if count is None or count >= len(source) else random_subset(source, count, seed)
        for source, count in ((train, limit), (test, test_limit))
    ]
    return cut[0], cut[1]


def compare(
    model: CrateMAE | CrateClassifier,
    train: ImageSource,
    test: ImageSource,
    *,
    methods: tuple[Method, ...] = ("probe", "knn"),
    pool: Pool = "mean",
    seed: int = 0,
    baselines: bool = True,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of every method for the model and, as baselines, its random twin and raw pixels.

    The twin has the same configuration and freshly drawn weights; features of each subject are
    computed once. Raises ValueError for an unknown method and what the methods raise.
    """
    unknown = set(methods) - set(get_args(Method))
    if unknown or not methods:
        raise ValueError(f"methods are {', '.join(get_args(Method))}, not {sorted(unknown)}")
    subjects: dict[str, tuple[Features, Features]] = {}

    def both(what: str, of: Callable[[ImageSource, Any], Features]) -> None:
        reports = (progress(f"{what}, {part}") if progress else None for part in ("train", "test"))
        features = [of(s, report) for s, report in zip((train, test), reports, strict=True)]
        subjects[what] = (features[0], features[1])

    both("model", lambda s, report: extract_features(model, s, pool=pool, progress=report))
    if baselines:
        twin = random_twin(model, seed)
        both("random twin", lambda s, r: extract_features(twin, s, pool=pool, progress=r))
        both("raw pixels", lambda s, r: raw_pixels(s, model.preprocess, progress=r))
    return [
        Row(
            subject=subject,
            method=method,
            dim=features[0].values.shape[1],
            tested_on=" ".join(filter(None, (test.address, test.split or "held out"))),
            result=linear_probe(*features, seed=seed)
            if method == "probe"
            else knn(*features, seed=seed),
        )
        for method in methods
        for subject, features in subjects.items()
    ]


def random_twin(model: CrateMAE | CrateClassifier, seed: int) -> CrateMAE:
    """An untrained CrateMAE of the same configuration, preprocessing and device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = CrateMAE(model.config)
    twin.preprocess = model.preprocess
    return twin.to(next(model.parameters()).device)


def comparison_table(rows: list[Row]) -> str:
    """The rows as aligned text: accuracy in per cent with its 95 % interval."""
    lines = [f"{'':<24}{'features':>9}{'accuracy':>10}   95 % interval   setting"]
    for row in rows:
        low, high = row.result.interval
        if isinstance(row.result, KnnResult):
            what, setting = f"kNN, {row.subject}", f"k = {row.result.k}"
        else:
            what, setting = f"probe, {row.subject}", f"penalty {row.result.penalty:g}"
            setting += "" if row.result.converged else " (not converged)"
        lines.append(
            f"{what:<24}{row.dim:>9}{row.result.accuracy:>10.2%}"
            f"   {low:.1%} to {high:.1%}  {setting}"
        )
    first = rows[0].result
    lines.append(
        f"{first.num_train} training images, {first.num_test} test images ({rows[0].tested_on}),"
        f" {first.num_classes} classes; the most frequent class alone gives {first.chance:.2%}"
    )
    return "\n".join(lines)


def _labelled(address: str, split: str | None) -> ImageSource:
    source = open_source(address, split=split)
    if not isinstance(source, ImageSource):
        raise ValueError(f"{address} is a stream; a probe needs images that can be counted")
    if source.class_names is None:
        raise ValueError(f"{address} has no labels: put images into one folder per class")
    return source
