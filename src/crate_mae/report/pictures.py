"""Pictures of a run as data URIs: read, checked, re-encoded, of bounded size."""

import base64
import io
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from crate_mae.analysis import FIGURES
from crate_mae.common.values import is_finite
from crate_mae.figures.run_curves import draw_training
from crate_mae.runs.contents import SHEET, STALE, Run
from crate_mae.runs.run_images import own_masks

MAX_SIDE = 2400
"""Pixels; longer pictures are made smaller."""
MAX_PNG_BYTES = 1_500_000
"""Above this a picture is stored as JPEG."""
MAX_SVG_BYTES = 2_000_000
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
MAX_EPOCHS = 4
"""Reconstruction sheets of the training that are shown: first, last, and some between."""
MAX_FIGURES = 12
MAX_RECORDS = 4000
"""Lines of metrics in the drawn curves; of more, evenly spread ones are taken."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture as a data URI, its caption, and its content as text."""

    uri: str
    alt: str
    caption: str


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
    sheets = []
    for path in folder.glob("epoch-*.png"):
        match = re.fullmatch(r"epoch-(\d{1,9})\.png", path.name)
        if match and path.is_file():
            sheets.append((int(match[1]), path))
    sheets.sort()
    if len(sheets) <= MAX_EPOCHS:
        return sheets
    last = len(sheets) - 1
    return [sheets[round(i * last / (MAX_EPOCHS - 1))] for i in range(MAX_EPOCHS)]


def analysis_figures(folder: Path) -> list[Path]:
    """The figures of an analysis folder that are there: SVG before PNG, ours first, a dozen."""
    figures: dict[str, Path] = {}
    names = [f"{name}.svg" for name in FIGURES] + [f"{name}.png" for name in FIGURES]
    paths = [folder / name for name in names]
    paths += sorted(folder.glob("*.svg")) + sorted(folder.glob("*.png"))
    for path in paths:
        if path.is_file():
            figures.setdefault(path.stem, path)
    return list(figures.values())[:MAX_FIGURES]


def _checked_svg(path: Path) -> bytes:
    content = path.read_bytes()
    if len(content) > MAX_SVG_BYTES:
        raise ValueError(f"{path.name} is too large for a report")
    if b"<svg" not in content[:4096] or b"<!ENTITY" in content:
        raise ValueError(f"{path.name} is no plain SVG picture")
    return content


def _encoded(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def figure_of(run: Run, path: Path, *, alt: str, caption: str) -> Figure | None:
    """The picture in a file; None, and a problem of the run, where it cannot be shown."""
    try:
        return Figure(uri=data_uri(path), alt=alt, caption=caption)
    except (OSError, ValueError) as error:
        run.problems.append(f"Left out, {path.name}: {error}.")
        return None


def completion_data(run: Run) -> dict[str, Any]:
    """The completed images of a run: its own sheet, or the last one of its training, and earlier
    ones."""
    is_there = bool(run.reconstruction) and (run.folder / SHEET).is_file()
    sheet = _sheet(run, run.reconstruction or {}) if is_there else None
    epochs = [
        figure
        for epoch, path in epoch_sheets(run.folder / "reconstructions")
        if (
            figure := figure_of(
                run,
                path,
                alt=f"Validation images, masked and completed, after epoch {epoch}",
                caption=f"After epoch {epoch}: validation images under masks that never change.",
            )
        )
    ]
    return {
        "is_stale": is_there and run.stale(run.reconstruction),
        "sheet": sheet,
        "last": None if sheet or not epochs else epochs[-1],
        "earlier": epochs if sheet else epochs[:-1],
    }


def _sheet(run: Run, facts: dict[str, Any]) -> Figure | None:
    psnr = facts.get("psnr")
    values = [value for value in psnr if is_finite(value)] if isinstance(psnr, list) else []
    mean = f", PSNR {sum(values) / len(values):.2f} dB on average" if values else ""
    where = " ".join(str(facts[key]) for key in ("data", "split") if facts.get(key))
    caption = f"{facts.get('images', '?')} images of {where}{mean}."
    if run.stale(facts):
        caption += f" STALE: {STALE}."
    caption += _of_masks(run, facts)
    if facts.get("trained_on"):
        caption += " These are training images, so they flatter it: no others of the run can be"
        caption += " opened again."
    alt = f"Sheet of images in five columns: original, masked, prediction, pasted, error{mean}"
    return figure_of(run, run.folder / SHEET, alt=alt, caption=caption)


def _of_masks(run: Run, facts: dict[str, Any]) -> str:
    """Which patches were removed, where no command removes such; else nothing."""
    masks = own_masks(run)
    if masks is None:
        return ""
    if facts.get("masks") != masks:
        return (
            f" NOT THE MASKS OF THIS RUN: it was trained on {masks}; crate-mae report measures"
            " with these."
        )
    shares = facts.get("removed")
    known = [s for s in shares if is_finite(s)] if isinstance(shares, list) else []
    here = f", here {min(known):.0%} to {max(known):.0%}" if known else ""
    return (
        f" Masks drawn as those of its validation: {masks} of the patches{here}. crate-mae"
        " reconstruct removes single patches at one ratio, so no command draws this picture."
    )
