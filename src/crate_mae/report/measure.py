"""What a report needs and a run folder lacks: measured once, kept in the run folder."""

import json
import logging
from collections.abc import Callable

from crate_mae.analysis import RANDOM, analyse_subjects, open_subjects
from crate_mae.evaluation.compare import compare
from crate_mae.evaluation.reconstruction import reconstruct_source
from crate_mae.evaluation.rows import comparison_table
from crate_mae.figures.reconstruction import reconstruction_sheet
from crate_mae.files import write_atomically
from crate_mae.models.weights import load_autoencoder, weights_hash
from crate_mae.report.images import MAX_TEST, MAX_TRAIN, held_out, labelled_pair
from crate_mae.report.run import ANALYSIS, EVALUATION, RECONSTRUCTION, SHEET, Run, read_results

logger = logging.getLogger(__name__)

PICTURES = 8
ANALYSED = 500
"""Images of the layer analysis: enough that its means stand still in the third digit."""

Progress = Callable[[str], Callable[[int, int], None] | None]


def measure_missing(
    run: Run,
    *,
    limit: int | None = None,
    test_limit: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Nothing; measures what the run folder lacks or holds of other weights, and keeps it there.

    Reconstructions, linear probe and nearest neighbours beside a random twin and raw pixels (at
    most `limit` training and `test_limit` test images, by default MAX_TRAIN and MAX_TEST), and the
    layer analysis. Results of the weights that lie there now are measured again only when a limit
    is given and they were measured with another. What cannot be measured becomes one of the run's
    problems, in words. A supervised run has made its own test and keeps it.
    """
    if run.weights is None:
        return

    def attempt(what: str, work: Callable[[], None]) -> None:
        logger.info("measuring %s", what)
        try:
            work()
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            run.problems.append(f"Left out, {what}: {_reason(error)}")

    if not run.is_classifier:
        if not _kept(run, run.reconstruction, SHEET):
            attempt("reconstructions", lambda: _reconstruct(run, device))
        if not _kept(run, run.evaluation, EVALUATION, limit=limit, test_limit=test_limit):
            most = (limit or MAX_TRAIN, test_limit or MAX_TEST)
            attempt("probe and nearest neighbours", lambda: _evaluate(run, *most, device, progress))
    if not _kept(run, run.layer_facts or None, ANALYSIS):
        attempt("layer analysis", lambda: _analyse(run, device, progress))
    read_results(run)


def _kept(run: Run, result: dict[str, object] | None, name: str, **asked: int | None) -> bool:
    """Whether a result is there, of the present weights, and made with what is asked for."""
    if result is None or run.stale(result) or not (run.folder / name).exists():
        return False
    return all(value is None or result.get(key) == value for key, value in asked.items())


def _reconstruct(run: Run, device: str) -> None:
    sha256 = weights_hash(run.folder)
    images = held_out(run, PICTURES)
    if (run.folder / SHEET).exists() and "sha256" not in (run.reconstruction or {}):
        raise FileExistsError(_not_ours(run, SHEET))
    model = load_autoencoder(run.folder).to(device)
    kind, ratio = run.setting("masking.kind"), run.number("masking.ratio")
    result, names = reconstruct_source(model, images.source, kind=kind, ratio=ratio)
    _check_unchanged(run, sha256)
    reconstruction_sheet(result, run.folder / SHEET, names=names, overwrite=True)
    facts = {
        "sha256": sha256,
        "data": images.source.address,
        "split": images.source.split,
        "trained_on": images.trained_on,
        "images": len(names),
        "kind": kind,
        "ratio": ratio,
        "mode": result.mode,
        "mse": [float(value) for value in result.mse],
        "psnr": [float(value) for value in result.psnr],
    }
    write_atomically(run.folder / RECONSTRUCTION, json.dumps(facts, indent=2) + "\n")


def _evaluate(
    run: Run, limit: int, test_limit: int, device: str, progress: Progress | None
) -> None:
    old = run.evaluation
    if (run.folder / EVALUATION).exists() and (old is None or not {"sha256", "rows"} <= set(old)):
        raise FileExistsError(_not_ours(run, EVALUATION))
    sha256 = weights_hash(run.folder)
    model = load_autoencoder(run.folder).to(device)
    train, test = labelled_pair(run, limit=limit, test_limit=test_limit)
    rows = compare(model, train, test, progress=progress)
    _check_unchanged(run, sha256)
    values = {"sha256": sha256, "limit": limit, "test_limit": test_limit}
    values |= {"rows": [row.to_dict() for row in rows]}
    write_atomically(run.folder / EVALUATION, json.dumps(values, indent=2) + "\n")
    write_atomically(run.folder / "evaluation.txt", comparison_table(rows) + "\n")


def _analyse(run: Run, device: str, progress: Progress | None) -> None:
    subjects = open_subjects(str(run.folder / "weights"), [RANDOM])
    for subject in subjects:
        subject.model.to(device)
    source = held_out(run, ANALYSED).source
    folder = run.folder / ANALYSIS
    analyse_subjects(subjects, source, folder, overwrite=True, progress=progress)


def _not_ours(run: Run, name: str) -> str:
    return f"{name} is none of ours and is not overwritten; move it out of {run.folder}"


def _check_unchanged(run: Run, sha256: str) -> None:
    if weights_hash(run.folder) != sha256:
        raise RuntimeError("the run wrote new weights meanwhile; make the report again")


def _reason(error: Exception) -> str:
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return words if words.endswith((".", "!", "?")) else f"{words}."
