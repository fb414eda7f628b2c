"""What every figure shares: where it may be saved, the palette, the way to disk.

Pictures are PNG, PDF or SVG by the suffix; nothing of a run (time, machine) is written into them,
and there is no global plotting state.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crate_mae.common.files import FIGURE_SUFFIXES, check_file_target, replacing
from crate_mae.figures.lettering import make_legible

DPI = 100

# Okabe and Ito's palette, told apart with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def check_figure_target(
    path: str | Path, *, overwrite: bool = False, kinds: Sequence[str] = ()
) -> Path:
    """The path, once a figure can be saved there: call it before any work.

    And beside it with each suffix of `kinds`. Raises ValueError for a suffix other than .png, .pdf
    or .svg, and FileExistsError for a file that is there, unless `overwrite` is set.
    """
    path = check_file_target(path, FIGURE_SUFFIXES, what="figures", overwrite=overwrite)
    for kind in kinds:
        check_file_target(
            path.with_suffix(kind), FIGURE_SUFFIXES, what="figures", overwrite=overwrite
        )
    return path


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, laid out without overlaps, with no window behind it."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Give axes a light grid and take the upper and right frame away."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save_figure(figure: Figure, path: Path, *, kinds: Sequence[str] = ()) -> Path:
    """The path, once the whole figure is there; undated, so that equal data give equal files.

    The same picture also goes beside it with each suffix of `kinds`, laid out only once.
    """
    undated: dict[str, dict[str, Any]] = {
        ".png": {},
        ".pdf": {"CreationDate": None},
        ".svg": {"Date": None},
    }
    make_legible(figure)
    for target in (path, *(path.with_suffix(kind) for kind in kinds)):
        kind = target.suffix.lower()
        with replacing(target) as fresh, warnings.catch_warnings():
            # Told of in words, once, by what looked for a font.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(fresh, format=kind[1:], dpi=DPI, metadata=undated[kind])
        figure.set_layout_engine("none")  # everything has its place now
    return path


def save_captioned(figure: Figure, path: Path, caption: str, *, kinds: Sequence[str] = ()) -> Path:
    """The path, once the figure is there with this caption below it, wrapped to its width.

    The rest is as `save_figure`.
    """
    width = int(figure.get_size_inches()[0] * 17)
    figure.supxlabel(fill(caption, width), fontsize=8, x=0.01, ha="left", color="#333333")
    return save_figure(figure, path, kinds=kinds)
