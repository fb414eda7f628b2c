"""The images a run was made with, opened again from its settings."""

from dataclasses import dataclass

from crate_mae.data.module import VALIDATION_SEED, split_off
from crate_mae.data.sources import ImageSource, open_source, random_subset
from crate_mae.evaluation.compare import open_pair
from crate_mae.report.run import Run

MAX_TRAIN, MAX_TEST = 50_000, 10_000


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images to look at, and whether the run was trained on them."""

    source: ImageSource
    trained_on: bool


def held_out(run: Run, count: int) -> HeldOut:
    """A random choice of the images a run validates on, or tests on when it is supervised.

    Training images where it has neither. Of a named split they are those that `--data-split` and
    `--limit` choose on the command line.
    Raises ValueError for streams and for data that no address can open again, and what opening
    raises.
    """
    address = run_address(run)
    other, split = run.looked_at
    named = other or address
    if named != address or split:
        source = _counted(named, split)
        trained_on = (named, source.split) == (address, run.data.get("split"))
        return HeldOut(source=random_subset(source, count), trained_on=trained_on)
    train = _counted(address, run.setting("data.split"))
    if (limit := run.count("data.limit")) is not None:
        train = random_subset(train, limit, run.count("seed") or 0)
    share = 0.0 if run.is_classifier else run.number("data.val_share")
    if not share:
        return HeldOut(source=random_subset(train, count), trained_on=True)
    _, rest = split_off(train, share, VALIDATION_SEED, run.count("data.val_limit"))
    return HeldOut(source=random_subset(rest, count), trained_on=False)


def labelled_pair(run: Run, *, limit: int, test_limit: int) -> tuple[ImageSource, ImageSource]:
    """(training, test) images with labels, as the run's settings name them, at most so many.

    Raises as `open_pair` and `held_out`.
    """
    address = run_address(run)
    own = run.count("data.limit")
    return open_pair(
        address,
        train_split=run.setting("data.split"),
        test_address=run.setting("data.val_source"),
        test_split=run.setting("data.val_split"),
        limit=limit if own is None else min(limit, own),
        test_limit=test_limit,
    )


def run_address(run: Run) -> str:
    """The address of the training images; ValueError when none can open them again."""
    trained_on = str(run.data.get("source") or "")
    if trained_on.startswith("dataset:"):
        raise ValueError(
            f"the run was trained on a data set made in Python ({trained_on}), which no address"
            " opens"
        )
    address = run.setting("data.source")
    if not isinstance(address, str):
        raise ValueError("the run's settings name no data source")
    return address


def _counted(address: str, split: str | None) -> ImageSource:
    source = open_source(address, split=split)
    if not isinstance(source, ImageSource):
        raise ValueError(f"{address} is a stream, whose images cannot be chosen")
    return source
