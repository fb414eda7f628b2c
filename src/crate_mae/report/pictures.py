"""Pictures of a run as data URIs: read, checked, re-encoded, of bounded size."""

import base64
import io
import math
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from crate_mae.analysis import FIGURES
from crate_mae.figures.run_curves import draw_training
from crate_mae.report.blocks import Block, Details, Figure, Paragraph
from crate_mae.runs.contents import SHEET, STALE, Run, is_number

MAX_SIDE = 2400
"""Pixels; longer pictures are made smaller."""
MAX_PNG_BYTES = 1_500_000
"""Above this a picture is kept as JPEG."""
MAX_SVG_BYTES = 2_000_000
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
MAX_EPOCHS = 4
"""Reconstruction sheets of the training that are shown: first, last, and some between."""
MAX_FIGURES = 12
MAX_RECORDS = 4000
"""Lines of metrics in the drawn curves; of more, evenly spread ones are taken."""


def data_uri(path: Path) -> str:
    """A PNG or SVG file as a data URI, re-encoded so that it is a picture and nothing else.

    An SVG stays as it is: shown as an image it cannot run scripts or fetch anything. Raises
    ValueError for files that are no such pictures or too large, and OSError.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path.name} is too large for a report")
    if path.suffix.lower() == ".svg":
        return _encoded("image/svg+xml", _checked_svg(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG",)) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise ValueError(f"{path.name} has too many pixels for a report")
                image = file.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, SyntaxError) as error:
        raise ValueError(f"{path.name} is no usable picture: {error}") from error
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    if buffer.tell() <= MAX_PNG_BYTES:
        return _encoded("image/png", buffer.getvalue())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return _encoded("image/jpeg", buffer.getvalue())


def curves_uri(records: Sequence[dict[str, Any]]) -> str:
    """The training curves as a data URI; ValueError when no record has a loss."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.svg"
        draw_training(thinned(records, MAX_RECORDS), path)
        return data_uri(path)


def thinned(records: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most about so many records, evenly spread; those of a validation all stay."""
    step = max(1, -(-len(records) // most))
    last = len(records) - 1
    return [
        record
        for index, record in enumerate(records)
        if index % step == 0 or index == last or any(key.startswith("val/") for key in record)
    ]


def epoch_sheets(folder: Path) -> list[tuple[int, Path]]:
    """(epoch, file) of the reconstruction sheets to show: evenly spread, the last among them."""
    found = []
    for path in folder.glob("epoch-*.png"):
        match = re.fullmatch(r"epoch-(\d{1,9})\.png", path.name)
        if match and path.is_file():
            found.append((int(match[1]), path))
    found.sort()
    if len(found) <= MAX_EPOCHS:
        return found
    last = len(found) - 1
    return [found[round(i * last / (MAX_EPOCHS - 1))] for i in range(MAX_EPOCHS)]


def analysis_figures(folder: Path) -> list[Path]:
    """The figures of an analysis folder that are there: SVG before PNG, ours first, a dozen."""
    found: dict[str, Path] = {}
    names = [f"{name}.svg" for name in FIGURES] + [f"{name}.png" for name in FIGURES]
    paths = [folder / name for name in names]
    paths += sorted(folder.glob("*.svg")) + sorted(folder.glob("*.png"))
    for path in paths:
        if path.is_file():
            found.setdefault(path.stem, path)
    return list(found.values())[:MAX_FIGURES]


def _checked_svg(path: Path) -> bytes:
    content = path.read_bytes()
    if len(content) > MAX_SVG_BYTES:
        raise ValueError(f"{path.name} is too large for a report")
    if b"<svg" not in content[:4096] or b"<!ENTITY" in content:
        raise ValueError(f"{path.name} is no plain SVG picture")
    return content


def _encoded(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


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
