"""The page from top to bottom: which blocks stand under which heading."""

import shlex

from crate_mae.common.files import file_hash
from crate_mae.report.blocks import (
    Block,
    Code,
    Details,
    Paragraph,
    Section,
    Table,
    number_cell,
    text_cell,
)
from crate_mae.report.curves import training_blocks
from crate_mae.report.feature_tables import class_blocks, comparison_table, test_blocks
from crate_mae.report.layer_tables import layer_blocks
from crate_mae.report.pictures import completion_blocks
from crate_mae.report.summary import summary_blocks
from crate_mae.runs.contents import (
    EVALUATION,
    RECONSTRUCTION,
    STALE,
    Run,
    comparison_rows,
    is_number,
)
from crate_mae.runs.measure_missing import ANALYSED, PICTURES

HASHED = (
    "config.yaml", "data.json", "metrics.jsonl", "summary.json", EVALUATION, RECONSTRUCTION,
    "analysis/layers.json", "weights/model.safetensors", "weights/config.json",
    "weights/preprocess.json", "weights-best/model.safetensors",
)  # fmt: skip


def sections_of(run: Run) -> list[Section]:
    """All sections of a run's page, the summary first although it is made last."""
    middle = [
        Section(id="training", title="Training", blocks=training_blocks(run)),
        *(
            [Section(id="test", title="Test", blocks=_test(run))]
            if run.is_classifier
            else [
                Section(id="completion", title="Completed images", blocks=completion_blocks(run)),
                Section(id="features", title="Frozen features", blocks=_features(run)),
            ]
        ),
        Section(id="layers", title="Inside the layers", blocks=_layers(run)),
        Section(id="commands", title="Make it again", blocks=command_blocks(run)),
        Section(id="configuration", title="Configuration", blocks=_configuration(run)),
        Section(id="environment", title="Environment", blocks=_environment(run)),
        Section(id="hashes", title="Files and hashes", blocks=_hashes(run)),
    ]
    return [Section(id="summary", title="Summary", blocks=summary_blocks(run)), *middle]


def _features(run: Run) -> list[Block]:
    rows = comparison_rows(run)
    blocks: list[Block] = [
        Paragraph(
            text="How well do the features tell classes apart, when the network stays as it is? A"
            " linear probe draws flat borders between the classes; nearest neighbours ask the most"
            " similar training images. Two baselines say what pre-training is worth: the random"
            " twin, the same network never trained, and raw pixels, no network at all. A model that"
            " does not beat both has learned nothing that helps with this task. The 95 %"
            " interval is the chance in the choice of test images alone."
        )
    ]
    if not rows:
        blocks.append(Paragraph(text=_why_no_features(run), tone="note"))
        return blocks
    if run.stale(run.evaluation):
        blocks.append(Paragraph(text=f"These numbers were {STALE}.", tone="bad"))
    if _pictures_seen(run, str(rows[0].get("tested_on"))):
        blocks.append(
            Paragraph(
                text="The test images were held out of the probe only: pre-training saw most of"
                " them, without their labels. A split that training never sees would be a harder"
                " test.",
                tone="note",
            )
        )
    return [*blocks, comparison_table(rows), *class_blocks(rows)]


def _why_no_features(run: Run) -> str:
    told = any("nearest neighbours" in problem for problem in run.problems)
    where = " The summary says why." if told else " They have not been measured."
    return f"There are no numbers here.{where}"


def _pictures_seen(run: Run, tested_on: str) -> bool:
    """Whether the test images are a part of what pre-training was given."""
    return tested_on.endswith(" held out") and str(run.data.get("source")) in tested_on


def _test(run: Run) -> list[Block]:
    blocks = test_blocks(run)
    if not blocks:
        return [Paragraph(text="The test has not been made: it is made at the end.", tone="note")]
    if run.stale(run.evaluation):
        blocks.insert(0, Paragraph(text=f"These numbers were {STALE}.", tone="bad"))
    return blocks


def _layers(run: Run) -> list[Block]:
    blocks = layer_blocks(run)
    if run.layers and run.stale(run.layer_facts):
        blocks.insert(0, Paragraph(text=f"These numbers were {STALE}.", tone="bad"))
    return blocks


def _configuration(run: Run) -> list[Block]:
    blocks: list[Block] = [
        Paragraph(text="Every setting, defaults included. As config.yaml it repeats the run."),
        Code(label="config.yaml", text=run.config_text),
    ]
    if run.weights is not None:
        parts = run.weights["parameters_by_part"]
        blocks.append(
            Table(
                caption="Parameters by part",
                heads=["Part", "Parameters"],
                rows=[
                    *([text_cell(name), number_cell(n, ",d")] for name, n in parts.items()),
                    [text_cell("all"), number_cell(run.weights["parameters"], ",d")],
                ],
            )
        )
        if not run.weights["finite"]:
            blocks.insert(0, Paragraph(text="Some weights are not finite numbers.", tone="bad"))
    return blocks


def _environment(run: Run) -> list[Block]:
    facts = dict(run.environment)
    packages = facts.pop("packages", None)
    packages = packages if isinstance(packages, dict) else {}
    shown = {**facts, **{name: packages[name] for name in PACKAGES if name in packages}}
    if not shown:
        return [Paragraph(text="It has not been written down.", tone="note")]
    body = [
        [
            text_cell(name.replace("_", " ")),
            text_cell(", ".join(map(str, value)) if isinstance(value, list) else value),
        ]
        for name, value in shown.items()
    ]
    blocks: list[Block] = [
        Table(
            caption="Where the run was made",
            heads=["What", "Value"],
            rows=body,
            note='A "+" after the git commit: the code had changes that are in no commit.',
            sortable=False,
        )
    ]
    if packages:
        lines = "\n".join(f"{name}=={version}" for name, version in packages.items())
        blocks.append(
            Details(
                title=f"All {len(packages)} installed packages",
                blocks=[Code(label="As a constraints file", text=lines)],
            )
        )
    return blocks


def _hashes(run: Run) -> list[Block]:
    body = []
    for name in HASHED:
        path = run.folder / name
        if path.is_file():
            size = number_cell(path.stat().st_size, ",d")
            body.append([text_cell(name), size, text_cell(file_hash(path))])
    text = "Equal hashes mean equal files."
    if run.data.get("fingerprint"):
        text += f" Fingerprint of the training images: {run.data['fingerprint']}."
    return [
        Paragraph(text=text),
        Table(caption="Files of the run", heads=["File", "Bytes", "SHA-256"], rows=body),
    ]


PACKAGES = ("torch", "torchvision", "lightning", "numpy", "safetensors", "scikit-learn")


def command_blocks(run: Run) -> list[Block]:
    """What was typed, and the commands that repeat training and measurements."""
    blocks: list[Block] = [
        Paragraph(
            text="Run them from the folder in which the run was started, with the version of the"
            " package that the environment below names. The same settings, data, package versions"
            " and kind of hardware give the same numbers; other hardware rounds differently."
        )
    ]
    if run.commands:
        blocks.append(Code(label="As it was started", text="\n".join(run.commands)))
    verb = "finetune" if run.is_classifier else "pretrain"
    folder = _folder(run)
    blocks.append(
        Code(
            label="Train again, with all settings of this run, into a new folder",
            text=_line(verb, "--config", f"{folder}/config.yaml", "--out", f"{folder}-again"),
        )
    )
    if run.summary is None:
        blocks.append(
            Code(label="Go on with this run", text=_line(verb, "--resume", folder)),
        )
    measured = measuring_commands(run)
    if measured:
        label = "Measure again"
        if not any(run.looked_at):
            label += " (pictures and layers on any images of the source, for want of a named split)"
        blocks.append(Code(label=label, text="\n".join(measured)))
    blocks.append(Code(label="Make this page again", text=_line("report", folder)))
    return blocks


def measuring_commands(run: Run) -> list[str]:
    """The commands of the measurements on this page; none for data that no address opens."""
    address = run.setting("data.source")
    if not isinstance(address, str) or str(run.data.get("source")).startswith("dataset:"):
        return []
    folder = _folder(run)
    other, split = run.looked_at
    looked_at = str(other or address)
    chosen = ["--split", str(split)] if split else []
    lines = [
        _line(
            "analyze", folder, looked_at, *chosen, "--limit", str(ANALYSED),
            "--out", f"{folder}-analysis",
        )
    ]  # fmt: skip
    if run.is_classifier:
        return lines
    pair = [folder, address]
    if run.setting("data.split"):
        pair += ["--train-split", str(run.setting("data.split"))]
    if other:
        pair += ["--test-address", looked_at]
    if split:
        pair += ["--test-split", str(split)]
    for key, option in (("limit", "--limit"), ("test_limit", "--test-limit")):
        if is_number(count := (run.evaluation or {}).get(key)):
            pair += [option, str(count)]
    masking = ["--mask-ratio", str(run.setting("masking.ratio"))]
    masking += ["--mask-kind", str(run.setting("masking.kind"))]
    return [
        _line(
            "reconstruct", folder, looked_at, *chosen, "--limit", str(PICTURES), *masking,
            "--out", f"{folder}-completed.png",
        ),
        _line("probe", *pair),
        _line("knn", *pair),
        *lines,
    ]  # fmt: skip


def _folder(run: Run) -> str:
    """The folder as it was given, or whole where that names no folder beside which to write."""
    return str(run.folder if run.folder.name not in ("", "..") else run.folder.resolve())


def _line(*words: str) -> str:
    return shlex.join(["crate-mae", *words])
