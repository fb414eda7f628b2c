"""The page from top to bottom: which numbers, tables and figures stand under which heading."""

import shlex
from dataclasses import asdict
from typing import Any

from crate_mae.common.files import file_hash
from crate_mae.common.values import is_number
from crate_mae.report.blocks import Section, Table, number_cell, text_cell
from crate_mae.report.curves import training_data
from crate_mae.report.feature_tables import features_data, test_data
from crate_mae.report.layer_tables import layers_data
from crate_mae.report.pictures import completion_data
from crate_mae.report.summary import summary_data
from crate_mae.runs.contents import EVALUATION, RECONSTRUCTION, Run
from crate_mae.runs.measure_missing import ANALYSED, PICTURES
from crate_mae.runs.run_images import (
    from_python,
    most_train,
    own_masks,
    python_source,
    reading_options,
)

HASHED = (
    "config.yaml", "start.json", "data.json", "metrics.jsonl", "summary.json",
    EVALUATION, RECONSTRUCTION,
    "analysis/layers.json", "weights/model.safetensors", "weights/config.json",
    "weights/preprocess.json", "weights-best/model.safetensors", "segmentation.png",
)  # fmt: skip
PACKAGES = ("torch", "torchvision", "lightning", "numpy", "safetensors", "scikit-learn")


def sections_of(run: Run) -> list[Section]:
    """All sections of a run's page, the summary first although it is made last."""
    results = (
        [Section(id="test", title="Test", data=test_data(run))]
        if run.is_classifier
        else [
            *(
                [Section(id="completion", title="Completed images", data=completion_data(run))]
                if run.is_masked
                else []
            ),
            Section(id="features", title="Frozen features", data=features_data(run)),
        ]
    )
    middle = [
        Section(id="training", title="Training", data=training_data(run)),
        *results,
        Section(id="layers", title="Inside the layers", data=layers_data(run)),
        Section(id="commands", title="Make it again", data=commands_data(run)),
        Section(id="configuration", title="Configuration", data=_configuration(run)),
        Section(id="environment", title="Environment", data=_environment(run)),
        Section(id="hashes", title="Files and hashes", data=_hashes(run)),
    ]
    return [Section(id="summary", title="Summary", data=summary_data(run)), *middle]


def _configuration(run: Run) -> dict[str, Any]:
    if run.weights is None:
        return {"text": run.config_text, "parameters": None}
    parts = run.weights["parameters_by_part"] | {"all": run.weights["parameters"]}
    table = Table(
        caption="Parameters by part",
        heads=["Part", "Parameters"],
        rows=[[text_cell(name), number_cell(count, ",d")] for name, count in parts.items()],
    )
    return {"text": run.config_text, "parameters": table, "finite": run.weights["finite"]}


def _environment(run: Run) -> dict[str, Any]:
    facts = dict(run.environment)
    packages = facts.pop("packages", None)
    packages = packages if isinstance(packages, dict) else {}
    facts |= {name: packages[name] for name in PACKAGES if name in packages}
    rows = [
        [
            text_cell(name.replace("_", " ")),
            text_cell(", ".join(map(str, value)) if isinstance(value, list) else value),
        ]
        for name, value in facts.items()
    ]
    table = Table(
        caption="Where the run was made",
        heads=["What", "Value"],
        rows=rows,
        notes=['A "+" after the git commit: the code had changes that are in no commit.'],
        sortable=False,
    )
    packages = [f"{name}=={version}" for name, version in packages.items()]
    return {"facts": table, "packages": packages}


def _hashes(run: Run) -> dict[str, Any]:
    body = []
    for name in HASHED:
        path = run.folder / name
        if path.is_file():
            size = number_cell(path.stat().st_size, ",d")
            body.append([text_cell(name), size, text_cell(file_hash(path))])
    table = Table(caption="Files of the run", heads=["File", "Bytes", "SHA-256"], rows=body)
    return {"files": table, "fingerprint": run.data.get("fingerprint")}


def commands_data(run: Run) -> dict[str, Any]:
    """What was typed, and the commands that repeat training and measurements."""
    verb, folder = "finetune" if run.is_classifier else "pretrain", _folder(run)
    # The settings of a supervised run hold its weights; those of pre-training do not.
    begun = ["--init-from", run.start.weights] if run.start and not run.is_classifier else []
    again = _line(verb, "--config", f"{folder}/config.yaml", *begun, "--out", f"{folder}-again")
    # The settings do not name a data set that was given in Python: a command trains on another.
    source = python_source(run)
    return {
        "started": "\n".join(run.commands),
        "again": again if source is None else None,
        "python": _python_note(run, verb, source),
        "start": None if run.start is None else asdict(run.start),
        "resume": _line(verb, "--resume", folder) if run.summary is None and not source else None,
        "measure": "\n".join(measuring_commands(run)),
        "named_split": any(run.looked_at),
        "report": _line("report", folder),
    }


def _python_note(run: Run, verb: str, source: str | None) -> str | None:
    """What a command cannot repeat of a run that was started from Python; None of others."""
    others = "test_dataset" if run.is_classifier else "val_dataset"
    if source is not None:
        more = f", {others}=..." if run.is_classifier else ""
        return (
            f"The images were a data set given in Python ({source}), which config.yaml does not"
            f" name: no command trains on them. To train again, call {verb}(..., dataset=...{more})"
            " with it, and with resume=True to go on with this run."
        )
    if not run.is_classifier and from_python(run):
        return (
            f"The run was started from Python. Validation images that were given there"
            f" ({others}=...) are not in config.yaml: the command chooses its own."
        )
    return None


def measuring_commands(run: Run) -> list[str]:
    """The commands of the measurements on this page, as far as there are any that repeat them.

    None for data that no address opens, and none that completes images under masks that
    `reconstruct` cannot draw.
    """
    address = run.setting("data.source")
    if not isinstance(address, str) or python_source(run) is not None:
        return []
    folder, reading = _folder(run), reading_options(run)
    other, split = run.looked_at
    looked_at = str(other or address)
    if not any((other, split)):
        split = run.setting("data.split")  # what is held out is a part of these
    chosen = [*(["--split", str(split)] if split else []), *reading]
    lines = [
        _line(
            "analyze", folder, looked_at, *chosen, "--limit", str(ANALYSED),
            "--out", f"{folder}-analysis",
        )
    ]  # fmt: skip
    if run.is_segmenter:
        return [*_segmenting(run, folder, looked_at), *lines]
    if run.is_classifier:
        return lines
    pair = [folder, address, *reading]
    if run.setting("data.split"):
        pair += ["--train-split", str(run.setting("data.split"))]
    if other:
        pair += ["--test-address", looked_at]
    if tested := run.looked_at[1]:
        pair += ["--test-split", str(tested)]
    found = run.evaluation or {}
    if isinstance(limit := found.get("limit"), int):
        pair += ["--limit", str(most_train(run, limit))]
    if is_number(limit := found.get("test_limit")):
        pair += ["--test-limit", str(limit)]
    if run.is_simdino:
        pair += ["--pool", "cls"]
        return [_line("probe", *pair), _line("knn", *pair), *lines]
    lines = [_line("probe", *pair), _line("knn", *pair), *lines]
    if own_masks(run) is not None:
        return lines
    masking = ["--mask-ratio", str(run.setting("masking.ratio"))]
    masking += ["--mask-kind", str(run.setting("masking.kind"))]
    completing = _line(
        "reconstruct", folder, looked_at, *chosen, "--limit", str(PICTURES), *masking,
        "--out", f"{folder}-completed.png",
    )  # fmt: skip
    return [completing, *lines]


def _segmenting(run: Run, folder: str, address: str) -> list[str]:
    """The command that measures the test images once more; none where no split names them."""
    tested = run.data.get("test")
    split = tested.get("split") if isinstance(tested, dict) else None
    masks = run.setting("segment.test_masks") or run.setting("segment.masks")
    if not isinstance(split, str) or "held out" in split or not isinstance(masks, str):
        return []
    target = f"{folder}-segmented.png"
    words = ["--split", split, *reading_options(run), "--masks", masks, "--out", target]
    return [_line("segment", folder, address, *words)]


def _folder(run: Run) -> str:
    """The folder as it was given, or whole where that names no folder beside which to write."""
    return str(run.folder if run.folder.name not in ("", "..") else run.folder.resolve())


def _line(*arguments: str) -> str:
    return shlex.join(["crate-mae", *arguments])
