"""What is known of weights that are to be published: from the weights, their run, and results."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from crate_mae.common.files import read_json_object, user_path
from crate_mae.common.values import is_count, is_finite
from crate_mae.evaluation.backbones import describe_weights
from crate_mae.evaluation.comparison import SETTINGS
from crate_mae.publish.redact import public_address, public_values
from crate_mae.runs.contents import MAX_BYTES, Run, comparison_rows, read_run
from crate_mae.training.callbacks import BEST
from crate_mae.training.resuming import WEIGHTS
from crate_mae.training.run_folder import CONFIG, last_step, load_settings
from crate_mae.weights.shipped import CARD
from crate_mae.weights.weights_folder import local_weights_folder

RECIPE, METRICS = "recipe.yaml", "metrics.json"
"""Of a published folder, beside the weights and their card."""

VALIDATION = (
    "val/loss", "val/mean_colour", "val/patch_mean", "val/accuracy", "test/accuracy",
    "val/mean_iou", "val/pixel_accuracy",
)  # fmt: skip
ROW_KEYS = (
    "subject", "method", "pool", "layer", "shots", "dim", "parameters", "tested_on", "accuracy",
    "interval", "std", "seeds", "chance", "num_classes", "num_train", "num_test",
)  # fmt: skip
RUN_KEYS = (*SETTINGS, "whitened", "converged", "on_edge")
"""How the result of one seed was had, as far as it is known."""
WAY_KEYS = (
    *RUN_KEYS, "solver", "normalise", "epochs", "batch_size", "folds", "num_held_out", "image_size",
)  # fmt: skip
"""How the result of a row was had, as far as it is known."""
TEST_KEYS = ("tested_on", "accuracy", "interval", "chance", "num_classes", "num_train", "num_test")
MASK_KEYS = (
    "tested_on", "mean_iou", "pixel_accuracy", "majority_mean_iou", "iou", "num_classes",
    "num_train", "num_test",
)  # fmt: skip
SECTIONS: dict[str, type] = {
    "finished": bool, "best": bool, "steps": int, "run_steps": int, "data": dict,
    "versions": dict, "validation": dict, "psnr": dict, "rows": list, "test": dict, "start": dict,
}  # fmt: skip
"""What METRICS may hold. `steps` are those of the weights; where these are the best of their run by
validation, `best` says so, and `run_steps` are those of the whole run."""
VERSIONS = ("crate_mae", "git", "torch")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that a card may say; no path of this machine is in it."""

    folder: Path
    """Where the three files lie; for reading alone, never published."""
    weights: dict[str, Any]
    """As `describe_weights`."""
    recipe: dict[str, Any] | None = None
    """Settings of the run, or None."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What METRICS holds: steps, data, versions, validation, rows of probe and kNN, the test."""
    card: str | None = None
    """The card that came with weights that were published before."""
    left_out: tuple[str, ...] = ()
    """What the card leaves out and why, in sentences."""

    @property
    def sha256(self) -> str:
        """Of the tensor file."""
        return str(self.weights["sha256"])


def gather(weights: str | Path, results: Sequence[str | Path] = ()) -> Facts:
    """The facts of weights: a run folder, its `weights` or `weights-best`, or any weights folder.

    `results` are files that `crate-mae probe --json` or `knn --json` wrote, whole or as far as an
    interrupted one came, which `left_out` then says. A folder that was published before brings its
    own recipe, metrics and card. Raises what `load_model` raises, and ValueError when a weight is
    not finite, a result belongs to other weights or is none, or the card that came along is that of
    other weights.
    """
    folder = local_weights_folder(weights)
    described = describe_weights(str(folder))
    if not described["finite"]:
        raise ValueError(
            f"{weights} holds weights that are not finite: they are of no use to others"
        )
    described = {key: value for key, value in described.items() if key != "folder"}
    sha256: str = described["sha256"]
    left_out: list[str] = []
    recipe, metrics, card = _published_before(folder, sha256)
    # A run's weights lie one level below its settings.
    if folder.name in ("weights", "weights-best") and (folder.parent / CONFIG).is_file():
        run = read_run(folder.parent)
        recipe = public_values(run.config, near=run.folder)
        metrics, left_out = _of_run(run, folder.name, sha256)
    rows = []
    for path in results:
        found, whole = _rows_of(user_path(path), sha256)
        rows += found
        if not whole:
            left_out.append(_interrupted(path))
    if rows:
        metrics = {**metrics, "rows": rows}
    metrics = {"sha256": sha256, "parameters": described["parameters"], **metrics}
    return Facts(
        folder=folder,
        weights=described,
        recipe=recipe,
        metrics=metrics,
        card=card,
        left_out=tuple(left_out),
    )


def _published_before(
    folder: Path, sha256: str
) -> tuple[dict[str, Any] | None, dict[str, Any], str | None]:
    """(recipe, metrics, card) that lie beside weights, each only where it is there."""
    recipe: dict[str, Any] | None = None
    metrics: dict[str, Any] = {}
    card: str | None = None
    if (folder / RECIPE).is_file():
        recipe = public_values(load_settings(folder / RECIPE), near=folder)
    if (folder / METRICS).is_file():
        values = public_values(read_json_object(folder / METRICS), near=folder)
        if values.get("sha256") != sha256:
            raise ValueError(f"{folder / METRICS} was measured on other weights: take it away")
        metrics = {k: v for k, v in values.items() if isinstance(v, SECTIONS.get(k, ()))}
        if "rows" in metrics:
            metrics["rows"] = [row for row in metrics["rows"] if isinstance(row, dict)]
    if (folder / CARD).is_file():
        card = (folder / CARD).read_text(encoding="utf-8")
        if sha256 not in card:
            raise ValueError(
                f"{folder / CARD} does not name the SHA-256 of the weights beside it, {sha256}:"
                " put it in if the card is theirs, or take the card away and have one made"
            )
    return recipe, metrics, card


def _of_run(run: Run, name: str, sha256: str) -> tuple[dict[str, Any], list[str]]:
    """(metrics, sentences on what is left out) of the run whose weights are published."""
    source = run.data.get("source")
    steps = (run.summary or {}).get("step")
    metrics: dict[str, Any] = {
        "finished": run.summary is not None,
        "steps": steps,
        "data": {
            "source": public_address(str(source), near=run.folder) if source else None,
            **{key: run.data.get(key) for key in ("split", "images", "validation_images")},
        },
        "versions": {key: run.environment.get(key) for key in VERSIONS},
    }
    if run.start is not None:
        metrics["start"] = public_values(asdict(run.start), near=run.folder)
    left_out = []
    if run.summary is None:
        left_out.append("The run is not finished: these weights are of a checkpoint on its way.")
    if name == WEIGHTS[BEST]:
        best, why = _best_step(run, sha256)
        metrics |= {"best": True, "steps": best, "run_steps": steps}
        if why:
            left_out.append(why)
    else:
        last = {key: run.last_value(key) for key in VALIDATION}
        metrics["validation"] = {key: value for key, value in last.items() if value is not None}
    measured = run.evaluation
    if measured is not None and measured.get("sha256") != sha256:
        left_out.append("evaluation.json was measured on other weights and is left out.")
    elif measured is not None and run.is_classifier:
        keys = MASK_KEYS if run.is_segmenter else TEST_KEYS
        metrics["test"] = _public(measured, keys, run.folder)
    elif measured is not None:
        metrics["rows"] = [_public_row(row, run.folder) for row in comparison_rows(run)]
        if measured.get("complete") is False:
            left_out.append(_interrupted("evaluation.json"))
    completed = run.reconstruction
    if completed is not None and completed.get("sha256") == sha256:
        psnr = completed.get("psnr")
        numbers = [value for value in psnr if is_finite(value)] if isinstance(psnr, list) else []
        if numbers:
            metrics["psnr"] = {"mean": sum(numbers) / len(numbers), "images": len(numbers)}
    return metrics, left_out


def _best_step(run: Run, sha256: str) -> tuple[int | None, str]:
    """(the step at which the best weights were kept, why it is not known or "")."""
    try:
        step = last_step(run.folder, BEST)
    except (OSError, ValueError) as error:
        step, why = None, f"The step of these weights is left out: {error}"
    else:
        why = f"The step of these weights is left out: the run has no {BEST} any more."
    if step is None:
        # A test writes down which weights it was made on, and their step.
        tested = run.evaluation or {}
        noted = tested.get("step")
        if tested.get("sha256") == sha256 and is_count(noted):
            step = noted
    return step, "" if step is not None else why


def _rows_of(path: Path, sha256: str) -> tuple[list[dict[str, Any]], bool]:
    """(the rows of a file of results, whether its comparison came to its end)."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no result file {path}")
    values = read_json_object(path, max_bytes=MAX_BYTES)
    rows = comparison_rows(Run(folder=path.parent, config={}, config_text="", evaluation=values))
    if not rows:
        raise ValueError(f"{path} holds no results: name what probe --json or knn --json wrote")
    if values.get("sha256") != sha256:
        raise ValueError(f"{path} was measured on other weights: {values.get('sha256')}")
    return [_public_row(row, path.parent) for row in rows], values.get("complete") is not False


def _interrupted(name: str | Path) -> str:
    return f"{name} is of a comparison that was interrupted: the lines that it lacks are left out."


def _public_row(row: dict[str, Any], near: Path) -> dict[str, Any]:
    """A row of a comparison with what a card tells of it, also of every seed's setting."""
    public = _public(row, ROW_KEYS, near) | _public(row, _known(row, WAY_KEYS), near)
    runs = row.get("runs")
    results = [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []
    if len(results) > 1:  # else the row itself holds the setting
        public["runs"] = [_public(run, _known(run, RUN_KEYS), near) for run in results]
    return public


def _known(values: dict[str, Any], keys: Sequence[str]) -> list[str]:
    return [key for key in keys if values.get(key) is not None]


def _public(values: dict[str, Any], keys: Sequence[str], near: Path) -> dict[str, Any]:
    public: dict[str, Any] = public_values({key: values.get(key) for key in keys}, near=near)
    return public


def recipe_text(recipe: dict[str, Any]) -> str:
    """The settings as YAML that `--config` reads, with a word on what must be filled in."""
    return (
        "# Settings of the run that made these weights. Where PATH stands, a place on the disk of\n"
        "# that machine was named: give your own, such as --data.source imagefolder:PICTURES.\n"
        + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    )
