"""In what runs differ: settings that change what is learned, first weights, training images."""

from collections.abc import Sequence
from typing import Any

from crate_mae.common.values import is_finite, text_of
from crate_mae.runs.contents import Run
from crate_mae.training.config import TrainerConfig

LEFT_OUT = ("name", "record.", "data.workers", "data.cache_gib", "trainer.")
"""Settings that do not change what is learned, and so are not set beside each other."""
ROUNDING = ("trainer.precision", "trainer.tf32")
"""The trainer's settings that do change it: what is computed is rounded otherwise."""
ACCUMULATE = "trainer.accumulate"
"""One that changes it where the loss is of a part of a step (`_depends_on_split`)."""
DEFAULTS = {
    key: getattr(TrainerConfig(), key.removeprefix("trainer.")) for key in (*ROUNDING, ACCUMULATE)
}
"""Their values in runs that did not write them down."""
STARTED_FROM = "started from"
"""What runs that began with other weights differ in: their name, and the begin of their SHA-256."""
TRAINING_IMAGES = "training images"
"""What runs on other images of the same settings differ in: source, and begin of fingerprint."""
CHOOSING = (
    "data.source", "data.split", "data.limit", "data.shots", "data.share", "data.val_",
    "data.image_key", "data.label_key", "data.follow_links",
)  # fmt: skip
"""Settings that choose training images: where they differ, so do fingerprints, as is expected."""
MISSING = object()


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """By dotted name, the values of settings in which runs differ; None where a run has none.

    Beside settings: the weights that they began with, and other images of the same settings.
    """
    differing = _differing_settings(runs)
    hashes = [run.start and run.start.sha256 for run in runs]
    if "weights" not in differing and len(set(hashes)) > 1:
        differing[STARTED_FROM] = [
            None if run.start is None else f"{run.start.weights} {run.start.sha256[:8]}"
            for run in runs
        ]
    if _are_of_other_images(runs, differing):
        differing[TRAINING_IMAGES] = [
            " ".join(filter(None, (_source(run), (_fingerprint(run) or "")[:8]))) or None
            for run in runs
        ]
    return differing


def fingerprints(runs: Sequence[Run]) -> set[str]:
    """The fingerprints of training images that the runs recorded."""
    return {found for run in runs if (found := _fingerprint(run)) is not None}


def draws_images(run: Run) -> bool:
    """Whether the run's seed draws its training images out of those of the source.

    A supervised run's few labels are. A limit is the same choice for every seed, but older versions
    drew that of pre-training by the seed.
    """
    drawn = ("data.shots", "data.share") if run.is_classifier else ("data.limit",)
    return any(run.setting(key) is not None for key in drawn)


def _differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    flat = [_flat(run.config) for run in runs]
    of_split = any(map(_depends_on_split, runs))
    differing = {}
    for key in sorted({key for settings in flat for key in settings}):
        counts = key in ROUNDING or (key == ACCUMULATE and of_split)
        if key.startswith(LEFT_OUT) and not counts:
            continue
        values = [settings.get(key, DEFAULTS.get(key, MISSING)) for settings in flat]
        if any(value != values[0] for value in values):
            differing[key] = [None if value is MISSING else value for value in values]
    return differing


def _depends_on_split(run: Run) -> bool:
    """Whether the loss of a step depends on the batches that it is accumulated from.

    A rate is no mean over images: that of each batch is not that of the step. Rates of each image's
    own tokens are.
    """
    gamma = run.setting("objective.gamma")
    of_batch = (
        run.setting("objective.over") == "batch" and run.setting("objective.features") != "tokens"
    )
    return (is_finite(gamma) and gamma > 0 and of_batch) or (
        run.setting("simdino.reduce_cov") is False
    )


def _are_of_other_images(runs: Sequence[Run], differing: dict[str, list[Any]]) -> bool:
    """Whether runs trained on other images though their settings do not tell it.

    What an old run did not record is no difference.
    """
    sources = {_source(run) for run in runs} - {None}
    if len(sources) > 1 and "data.source" not in differing:
        return True
    if any(key.startswith(CHOOSING) for key in differing):
        return False
    # Where the seed draws images, runs that repeat each other have other fingerprints though their
    # source is the same: that is a part of what their spread means, and only runs of one seed must
    # agree. Which of the images are held out is fixed whatever the seed, and changes nothing here.
    by_draw: dict[Any, set[str]] = {}
    for run in runs:
        draw = run.config.get("seed") if draws_images(run) else None
        by_draw.setdefault(draw, set()).update(fingerprints([run]))
    return any(len(found) > 1 for found in by_draw.values())


def _source(run: Run) -> str | None:
    return text_of(run.data.get("source"))


def _fingerprint(run: Run) -> str | None:
    return text_of(run.data.get("fingerprint"))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
