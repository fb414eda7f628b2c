"""The commands that make everything on the page again."""

import shlex

from crate_mae.report.blocks import Block, Code, Paragraph, is_number
from crate_mae.report.measure import ANALYSED, PICTURES
from crate_mae.report.run import Run


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
    chosen = ["--data-split", str(split)] if split else []
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
