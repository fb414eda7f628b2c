"""One protocol for every model: the same images, features, choices and test, line by line."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol, get_args

from crate_mae.common.progress import Progress, StartProgress
from crate_mae.evaluation.backbones import Layers, checked_layers, random_baseline
from crate_mae.evaluation.encoding import Key
from crate_mae.evaluation.features import (
    FeaturePool,
    Features,
    extract_all,
    raw_pixels,
    reduced,
)
from crate_mae.evaluation.knn import nearest_neighbours
from crate_mae.evaluation.metrics import few_shot, with_majority_of
from crate_mae.evaluation.probe import linear_probe
from crate_mae.evaluation.rows import Method, Result, Row
from crate_mae.models.backbone import Backbone
from crate_mae.models.cost import parameter_count
from crate_mae.sources.base import ImageSource
from crate_mae.sources.splits import few_shot_indices

ComparedModel = Backbone | partial[Any]
"""A model, or a `functools.partial` that makes one of a seed."""

Baseline = Literal["random", "pixels"]
"""What needs no learning: the same network with fresh weights, and raw pixels."""

logger = logging.getLogger(__name__)


class Measure(Protocol):
    """A method with its settings, such as `linear_probe` or a `functools.partial` of it."""

    def __call__(
        self,
        train: Features,
        test: Features,
        *,
        seed: int,
        progress: Progress | None,
    ) -> Result: ...


MEASURES: Mapping[Method, Measure] = {"probe": linear_probe, "knn": nearest_neighbours}


def compare_models(
    model: Backbone,
    train: ImageSource,
    test: ImageSource,
    *,
    measures: Mapping[Method, Measure] = MEASURES,
    pools: Sequence[FeaturePool] = ("mean",),
    layers: Layers = (None,),
    seeds: Sequence[int] = (0,),
    shots: int | None = None,
    baselines: Collection[Baseline] = get_args(Baseline),
    others: Mapping[str, ComparedModel] | None = None,
    progress: StartProgress | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Rows of every measure, subject, layer and pool; by measure, then subject.

    Subjects are the model, `others` and `baselines`: the random baseline (the same configuration,
    freshly drawn weights) and raw pixels, of smaller images where they are many (`reduced`). A
    `functools.partial` in `others` makes a model of a seed, as the random baseline is made.
    Features of each are computed once, in one pass for all layers and pools; where the seed makes
    the model, once per seed. Each seed also draws the held-out images, the `shots` labels of
    every class and what is random in a measure. `on_row` hears of each row as soon as it is there.
    Raises ValueError for layers that a subject lacks or an unknown baseline, and what the measures
    raise.
    """
    if not measures or not seeds:
        raise ValueError("name at least one measure and one seed")
    subjects: dict[str, ComparedModel | None] = {"model": model, **(others or {})}
    if unknown_names := set(baselines) - set(get_args(Baseline)):
        raise ValueError(
            f"there is no baseline {sorted(unknown_names)[0]!r}: name some of"
            f" {', '.join(get_args(Baseline))}"
        )
    if "random" in baselines:
        subjects["random baseline"] = partial(random_baseline, model)
    if "pixels" in baselines:
        subjects["raw pixels"] = None
    pixels = reduced(model.preprocess)
    for subject in subjects.values():
        if subject is not None and not isinstance(subject, partial):
            checked_layers(subject, layers)  # before any work
    if shots is not None:
        labels = [train.label(index) for index in range(len(train))]
        few_shot_indices(labels, shots, seeds[0], train.class_names)

    def features(
        subject: Backbone | None, source: ImageSource, what: str
    ) -> Mapping[Key, Features]:
        report = progress(what) if progress else None
        if subject is None:
            return {(None, "pixels"): raw_pixels(source, pixels, progress=report)}
        return extract_all(subject, source, pools=pools, layers=layers, progress=report)

    def rows_of(name: str, subject: Backbone | None, seeds: Sequence[int]) -> list[Row]:
        known = features(subject, train, f"{name}, train")
        unknown = features(subject, test, f"{name}, test")
        return [
            row
            for key in known
            for row in compare_features(
                known[key],
                unknown[key],
                subject=name,
                tested_on=tested_on,
                parameters=None if subject is None else parameter_count(subject),
                image_size=(pixels if subject is None else subject.preprocess).size,
                measures=measures,
                seeds=seeds,
                shots=shots,
                progress=progress,
            )
        ]

    part = test.split or ("held out" if test.address == train.address else None)
    tested_on = " ".join(filter(None, (test.address, part)))
    rows: list[Row] = []
    for name, subject in subjects.items():
        if isinstance(subject, partial):
            found = _joined([rows_of(name, subject(seed), (seed,)) for seed in seeds])
        else:
            found = rows_of(name, subject, seeds)
        rows += found
        if on_row is not None:
            for row in found:
                on_row(row)
    return sorted(rows, key=lambda row: list(measures).index(row.method))


def compare_features(
    train: Features,
    test: Features,
    *,
    subject: str = "features",
    tested_on: str = "",
    parameters: int | None = None,
    image_size: tuple[int, int] | None = None,
    measures: Mapping[Method, Measure] = MEASURES,
    seeds: Sequence[int] = (0,),
    shots: int | None = None,
    progress: StartProgress | None = None,
) -> list[Row]:
    """Rows, one per measure, of features that are there already.

    With `shots`, the most frequent class is that of all training images, not of those drawn.
    Raises what `few_shot` and the measures raise.
    """
    rows = []
    for method, measure in measures.items():
        results = []
        for seed in seeds:
            known = train if shots is None else few_shot(train, shots, seed)
            report = progress(f"{subject}, {method}") if progress else None
            result = measure(known, test, seed=seed, progress=report)
            if shots is not None and test.labels is not None:
                result = with_majority_of(result, train, test.labels)
            results.append(result)
        rows.append(
            Row(
                subject=subject,
                method=method,
                pool=train.pool,
                layer=train.layer,
                dim=train.values.shape[1],
                parameters=parameters,
                shots=shots,
                tested_on=tested_on,
                image_size=image_size,
                results=tuple(results),
            )
        )
    return rows


def _joined(by_seed: Sequence[list[Row]]) -> list[Row]:
    """The rows of several seeds, each with the results of all."""
    return [
        replace(rows[0], results=tuple(result for row in rows for result in row.results))
        for rows in zip(*by_seed, strict=True)
    ]
