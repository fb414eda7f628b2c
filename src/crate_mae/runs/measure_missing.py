"""What a report needs and a run folder lacks: measured once and written into the run folder."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from crate_mae.analysis import RANDOM, analyse_models, open_models
from crate_mae.batches.config import VALIDATION_SEED, Masking
from crate_mae.batches.transforms import prepare
from crate_mae.common.files import write_atomically
from crate_mae.common.progress import StartProgress
from crate_mae.evaluation.backbones import load_backbone, load_masked_autoencoder
from crate_mae.evaluation.compare import compare_models
from crate_mae.evaluation.reconstruction import Reconstruction, reconstruct, reconstruct_source
from crate_mae.evaluation.rows import comparison_table
from crate_mae.figures.reconstruction_sheet import draw_reconstruction
from crate_mae.models.backbone import MaskedAutoencoder
from crate_mae.models.pools import Pool
from crate_mae.runs.contents import (
    ANALYSIS,
    EVALUATION,
    NOT_EVALUATED,
    RECONSTRUCTION,
    SHEET,
    Run,
    read_results,
)
from crate_mae.runs.run_images import (
    drawn_by_verb,
    most_train,
    own_masks,
    python_source,
    run_masking,
    run_reading,
)
from crate_mae.sources.address import CHOICE_SEED, open_pair, open_source
from crate_mae.sources.base import ImageSource, random_subset
from crate_mae.sources.images import Sample, to_channels
from crate_mae.sources.inputs import varied_choice
from crate_mae.sources.splits import split_off
from crate_mae.weights.weights_folder import weights_hash

logger = logging.getLogger(__name__)

Choose = Callable[[ImageSource, int], ImageSource]
"""Chooses so many images of a source."""

MAX_TRAIN, MAX_TEST = 50_000, 10_000
"""Images of the probe and of nearest neighbours, at most."""
PICTURES = 8
ANALYSED = 500
"""Images of the layer analysis: enough that its means stand still in the third digit."""


def complete_run(
    run: Run,
    *,
    limit: int | None = None,
    test_limit: int | None = None,
    device: str = "cpu",
    progress: StartProgress | None = None,
) -> None:
    """Measure what the run folder lacks or holds of other weights, and write it there.

    Reconstructions, linear probe and nearest neighbours beside a random baseline and raw pixels (at
    most `limit` training and `test_limit` test images, by default MAX_TRAIN and MAX_TEST), and the
    layer analysis. Results of the weights that lie there now are measured again only when a limit
    is given and they were measured with another. What cannot be measured becomes one of the run's
    problems, as a sentence. A supervised run has its own test, which stays as it is.
    """
    if run.weights is None:
        return

    def attempt(what: str, work: Callable[[], None]) -> None:
        logger.info("measuring %s", what)
        try:
            work()
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            problem = f"Left out, {what}: {_reason(error)}"
            run.problems += [] if problem in run.problems else [problem]

    if not run.is_classifier:
        masks = own_masks(run)
        if run.is_masked and not _is_current(run, run.reconstruction, SHEET, masks=masks):
            attempt("reconstructions", lambda: _reconstruct(run, device))
        asked = None if limit is None else most_train(run, limit)
        if not _is_current(run, run.evaluation, EVALUATION, limit=asked, test_limit=test_limit):
            most = (limit or MAX_TRAIN, test_limit or MAX_TEST)
            attempt(NOT_EVALUATED, lambda: _evaluate(run, *most, device, progress))
    if not _is_current(run, run.layer_facts or None, ANALYSIS):
        attempt("layer analysis", lambda: _analyse(run, device, progress))
    read_results(run)


def _is_current(
    run: Run, result: dict[str, object] | None, name: str, **asked: int | str | None
) -> bool:
    """Whether a result is there, of the present weights, and measured as is asked for."""
    if result is None or run.stale(result) or not (run.folder / name).exists():
        return False
    return all(value is None or result.get(key) == value for key, value in asked.items())


def _reconstruct(run: Run, device: str) -> None:
    sha256 = weights_hash(run.folder)
    images = held_out(run, PICTURES, choose=varied_choice)
    if (run.folder / SHEET).exists() and "sha256" not in (run.reconstruction or {}):
        raise FileExistsError(_not_ours(run, SHEET))
    model = load_masked_autoencoder(run.folder).to(device)
    masking = run_masking(run)
    if drawn_by_verb(masking):
        kind, ratio = masking.kind, masking.ratio
        result, names = reconstruct_source(model, images.source, kind=kind, ratio=ratio)
    else:
        result, names = _completed(model, images.source, masking)
    _check_unchanged(run, sha256)
    draw_reconstruction(result, run.folder / SHEET, names=names, overwrite=True)
    facts = {
        "sha256": sha256,
        "data": images.source.address,
        "split": images.source.split,
        "trained_on": images.trained_on,
        "images": len(names),
        "kind": masking.kind,
        "ratio": masking.ratio,
        "masks": own_masks(run),
        "removed": [float(share) for share in result.mask.double().mean(dim=1)],
        "mode": result.mode,
        "mse": [float(value) for value in result.mse],
        "psnr": [float(value) for value in result.psnr],
        "low": list(result.low),
        "high": list(result.high),
    }
    write_atomically(run.folder / RECONSTRUCTION, json.dumps(facts, indent=2) + "\n")


def _completed(
    model: MaskedAutoencoder, source: ImageSource, masking: Masking
) -> tuple[Reconstruction, list[str]]:
    """Completed images of a source under masks drawn as those of validation, and their names.

    Unreadable images are passed over; raises ValueError when none can be read.
    """
    images, masks, names = [], [], []
    masking = masking.of_validation
    ratio = masking.step_ratio(VALIDATION_SEED, 0)
    for index in range(len(source)):
        sample = source.read(index)
        if not isinstance(sample, Sample):
            logger.warning("passed over: %s", sample)
            continue
        images.append(to_channels(sample.image, model.preprocess.channels))
        masks.append(masking.draw(model.config.grid, VALIDATION_SEED, 0, index, ratio=ratio))
        names.append(sample.name)
    if not names:
        raise ValueError(f"none of the {len(source)} images of {source.address} can be read")
    return reconstruct(model, prepare(images, model.preprocess), torch.stack(masks)), names


def _evaluate(
    run: Run, limit: int, test_limit: int, device: str, progress: StartProgress | None
) -> None:
    old = run.evaluation
    if (run.folder / EVALUATION).exists() and (old is None or not {"sha256", "rows"} <= set(old)):
        raise FileExistsError(_not_ours(run, EVALUATION))
    sha256 = weights_hash(run.folder)
    model = load_backbone(run.folder)[0].to(device)
    train, test = labelled_pair(run, limit=limit, test_limit=test_limit)
    pools: tuple[Pool, ...] = ("cls",) if run.is_simdino else ("mean",)  # what its loss is of
    rows = compare_models(model, train, test, pools=pools, progress=progress)
    _check_unchanged(run, sha256)
    values = {
        "sha256": sha256,
        "data": train.address,
        "split": train.split,
        "limit": most_train(run, limit),
        "test_limit": test_limit,
        "rows": [row.to_dict() for row in rows],
    }
    write_atomically(run.folder / EVALUATION, json.dumps(values, indent=2) + "\n")
    write_atomically(run.folder / "evaluation.txt", comparison_table(rows) + "\n")


def _analyse(run: Run, device: str, progress: StartProgress | None) -> None:
    subjects = open_models(str(run.folder / "weights"), [RANDOM])
    for subject in subjects:
        subject.model.to(device)
    source = held_out(run, ANALYSED).source
    folder = run.folder / ANALYSIS
    analyse_models(subjects, source, folder, overwrite=True, progress=progress)


def _not_ours(run: Run, name: str) -> str:
    return f"{name} is none of ours and is not overwritten; move it out of {run.folder}"


def _check_unchanged(run: Run, sha256: str) -> None:
    if weights_hash(run.folder) != sha256:
        raise RuntimeError("the run wrote new weights meanwhile; make the report again")


def _reason(error: Exception) -> str:
    sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images to look at, and whether the run was trained on them."""

    source: ImageSource
    trained_on: bool


def held_out(run: Run, count: int, *, choose: Choose = random_subset) -> HeldOut:
    """A choice of the images a run validates on, or tests on when it is supervised.

    Training images where it has neither, and where those it validated on cannot be told from them:
    they came from Python, or the data have changed since. Of a named split they are those that
    `--split` and `--limit` choose on the command line; `choose` is `varied_choice` where the verb
    varies it. Raises ValueError for streams and for data that no address can open again, and what
    opening raises.
    """
    address = run_address(run)
    other, split = run.looked_at
    named = other or address
    if named != address or split:
        source = _counted(run, named, split)
        trained_on = (named, source.split) == (address, run.data.get("split"))
        return HeldOut(source=choose(source, count), trained_on=trained_on)
    train = _counted(run, address, run.setting("data.split"))
    if (limit := run.count("data.limit")) is not None:
        train = random_subset(train, limit, CHOICE_SEED)
    share = 0.0 if run.is_classifier else run.number("data.val_share")
    if not share:
        return HeldOut(source=choose(train, count), trained_on=True)
    kept, rest = split_off(train, share, VALIDATION_SEED, run.count("data.val_limit"))
    if not _was_split_so(run, len(kept), len(rest)):
        return HeldOut(source=choose(train, count), trained_on=True)
    return HeldOut(source=choose(rest, count), trained_on=False)


def _was_split_so(run: Run, trained: int, held: int) -> bool:
    """Whether the recorded numbers of images are those of a split into so many and so many.

    Unreadable images may be missing from either. True where nothing was recorded.
    """
    images, validation = run.data.get("images"), run.data.get("validation_images")
    if not isinstance(images, int) or not isinstance(validation, int):
        return True
    unreadable = run.data.get("unreadable")
    broken = len(unreadable) if isinstance(unreadable, dict) else 0
    whole = images + validation + broken >= trained + held
    return images <= trained and validation <= held and whole


def labelled_pair(run: Run, *, limit: int, test_limit: int) -> tuple[ImageSource, ImageSource]:
    """(training, test) images with labels, as the run's settings name them, at most so many.

    Raises as `open_pair` and `held_out`.
    """
    address = run_address(run)
    other, split = run.looked_at
    run.count("data.limit")  # a damaged setting is told of, not passed over
    return open_pair(
        address,
        train_split=run.setting("data.split"),
        test_address=other,
        test_split=split,
        limit=most_train(run, limit),
        test_limit=test_limit,
        reading=run_reading(run),
    )


def run_address(run: Run) -> str:
    """The address of the training images; ValueError when none can open them again."""
    if (trained_on := python_source(run)) is not None:
        raise ValueError(
            f"the run was trained on a data set made in Python ({trained_on}), which its settings"
            " do not name"
        )
    address = run.setting("data.source")
    if not isinstance(address, str):
        raise ValueError("the run's settings name no data source")
    return address


def _counted(run: Run, address: str, split: str | None) -> ImageSource:
    source = open_source(address, split=split, reading=run_reading(run))
    if not isinstance(source, ImageSource):
        raise ValueError(f"{address} is a stream, whose images cannot be chosen")
    return source
