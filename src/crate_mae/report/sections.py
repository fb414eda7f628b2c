"""The page from top to bottom: which blocks stand under which heading."""

from crate_mae.files import file_hash
from crate_mae.report import words
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
from crate_mae.report.commands import command_blocks
from crate_mae.report.completion import completion_blocks
from crate_mae.report.layers import layer_blocks
from crate_mae.report.results import (
    class_blocks,
    comparison_rows,
    comparison_table,
    test_blocks,
)
from crate_mae.report.run import EVALUATION, RECONSTRUCTION, STALE, Run
from crate_mae.report.summary import summary_blocks
from crate_mae.report.training import training_blocks

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
    shown = {**facts, **{name: packages[name] for name in words.PACKAGES if name in packages}}
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
