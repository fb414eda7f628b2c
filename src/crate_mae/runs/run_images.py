"""Which images and masks a run had, as its record tells; nothing heavy is loaded for it."""

from crate_mae.batches.config import Masking
from crate_mae.runs.contents import Run
from crate_mae.sources.address import is_address
from crate_mae.sources.found import Reading
from crate_mae.training.run_folder import FROM_PYTHON


def run_masking(run: Run) -> Masking:
    """The masks of a run, as its settings have them; ValueError for damaged ones.

    What was no setting yet when the run began has its default.
    """
    usual, top = Masking(), run.setting("masking.ratio_max")
    return Masking(
        kind=run.setting("masking.kind"),
        ratio=run.number("masking.ratio"),
        ratio_max=None if top is None else run.number("masking.ratio_max"),
        ratio_per=run.setting("masking.ratio_per") or usual.ratio_per,
        square=run.count("masking.square") or usual.square,
    )


def known_masking(run: Run) -> Masking | None:
    """The masks of a run; None for one without masks or with damaged settings of them."""
    if not run.is_masked:
        return None
    try:
        return run_masking(run)
    except ValueError:
        return None


def drawn_by_verb(masking: Masking) -> bool:
    """Whether `crate-mae reconstruct` can draw such masks: of single patches, at one ratio."""
    return masking.one_count and masking.square == 1


def own_masks(run: Run) -> str | None:
    """The masks of a run in words, where `crate-mae reconstruct` cannot draw them.

    None where it can, and where `known_masking` is None.
    """
    masking = known_masking(run)
    return None if masking is None or drawn_by_verb(masking) else str(masking)


def most_train(run: Run, limit: int) -> int:
    """At most how many images a probe of the run learns from: no more than the run itself."""
    own = run.setting("data.limit")
    return min(limit, own) if isinstance(own, int) else limit


def python_source(run: Run) -> str | None:
    """What the training images are called, where they were given in Python; else None.

    The settings then name others, those of `data.source`, which nobody trained on.
    """
    source = run.data.get("source")
    if not isinstance(source, str) or not source or source == run.setting("data.source"):
        return None
    # Whoever moved images may have put their new address into the settings by hand: of a run
    # started on a command line that is all that another address can mean.
    return None if is_address(source) and not from_python(run) else source


def from_python(run: Run) -> bool:
    """Whether the run was started or resumed from Python, where data sets can be given."""
    return any(FROM_PYTHON in line for line in run.commands)


def reading_options(run: Run) -> list[str]:
    """The options of a verb that reads the run's images as the run does."""
    reading = run_reading(run)
    options = []
    if reading.image_key is not None:
        options += ["--image-key", str(reading.image_key)]
    if reading.label_key is not None:
        options += ["--label-key", str(reading.label_key)]
    return [*options, "--follow-links"] if reading.follow_links else options


def run_reading(run: Run) -> Reading:
    """How the run reads its sources."""
    return Reading(
        image_key=run.setting("data.image_key"),
        label_key=run.setting("data.label_key"),
        follow_links=bool(run.setting("data.follow_links")),
    )
