"""Pictures of what the model completes: of the final weights, and of the way there."""

import math
from pathlib import Path

from crate_mae.report.blocks import Block, Details, Figure, Paragraph, is_number
from crate_mae.report.pictures import data_uri, epoch_sheets
from crate_mae.report.run import SHEET, STALE, Run


def completion_blocks(run: Run) -> list[Block]:
    """The completed images of a run."""
    blocks: list[Block] = [
        Paragraph(
            text="Each row is an image: the original, what the model was shown (removed patches"
            " grey), what it predicts, the prediction pasted into the visible part, and the error."
            " Sharp detail where much is removed cannot be expected: what comes back is a mean over"
            " everything that could have been there. PSNR is the error in decibels; higher is"
            " better, and 3 dB are half the squared error."
        )
    ]
    blocks += _sheet(run)
    sheets = []
    for epoch, path in epoch_sheets(run.folder / "reconstructions"):
        figure = _picture(
            run,
            path,
            alt=f"Validation images, masked and completed, after epoch {epoch}",
            caption=f"After epoch {epoch}: validation images under masks that never change.",
        )
        sheets += [figure] if figure else []
    if sheets and len(blocks) > 1:
        blocks.append(Details(title=f"How it came about ({len(sheets)} pictures)", blocks=sheets))
    elif sheets:
        blocks += sheets[-1:]
        if sheets[:-1]:
            blocks.append(Details(title="Earlier pictures of the training", blocks=sheets[:-1]))
    if len(blocks) == 1:
        blocks.append(Paragraph(text="No pictures have been drawn yet.", tone="note"))
    return blocks


def _sheet(run: Run) -> list[Block]:
    facts = run.reconstruction or {}
    path = run.folder / SHEET
    if not path.is_file() or not facts:
        return []
    psnr = facts.get("psnr")
    values = [v for v in psnr if is_number(v)] if isinstance(psnr, list) else []
    values = [value for value in values if math.isfinite(value)]
    mean = f", PSNR {sum(values) / len(values):.2f} dB on average" if values else ""
    where = " ".join(str(facts[key]) for key in ("data", "split") if facts.get(key))
    caption = f"{facts.get('images', '?')} images of {where}{mean}."
    blocks: list[Block] = []
    if run.stale(facts):
        caption += f" STALE: {STALE}."
        blocks.append(Paragraph(text=f"The picture was {STALE}.", tone="bad"))
    if facts.get("trained_on"):
        caption += " These are training images: the run has no others, so they flatter it."
    alt = f"Sheet of images in five columns: original, masked, prediction, pasted, error{mean}"
    figure = _picture(run, path, alt=alt, caption=caption)
    return [*blocks, figure] if figure else blocks


def _picture(run: Run, path: Path, *, alt: str, caption: str) -> Figure | None:
    try:
        return Figure(uri=data_uri(path), alt=alt, caption=caption)
    except (OSError, ValueError) as error:
        run.problems.append(f"Left out, {path.name}: {error}.")
        return None
