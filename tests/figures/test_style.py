"""How figures are written: formats, targets, no state left behind."""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
import torch
from figure_cases import METRICS, completion, maps, pictures, points, tokens

from crate_mae.dense.segmentation import Segmentation
from crate_mae.dense.token_pca import fit_token_map
from crate_mae.figures.attention_sheet import draw_attention
from crate_mae.figures.feature_plane import draw_feature_map
from crate_mae.figures.reconstruction_sheet import draw_reconstruction
from crate_mae.figures.run_curves import draw_training
from crate_mae.figures.style import check_figure_target
from crate_mae.figures.token_sheets import draw_pca, draw_segmentation


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    for path in (
        draw_reconstruction(completion(), tmp_path / "new" / f"sheet{suffix}"),
        draw_training(METRICS, tmp_path / f"curves{suffix}"),
    ):
        assert path.read_bytes().startswith(starts[suffix.lower()])
        assert [p for p in path.parent.iterdir() if "partial" in p.name] == []


def test_targets_are_checked_before_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"figures are written as \.png, \.pdf, \.svg"):
        check_figure_target(tmp_path / "a.bmp")
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    draws: list[Callable[[], Path]] = [
        lambda: check_figure_target(path),
        lambda: draw_reconstruction(completion(), path),
        lambda: draw_training(METRICS, path),
    ]
    for draw in draws:
        with pytest.raises(FileExistsError, match="exists"):
            draw()
    assert path.read_bytes() == b"mine"
    draw_reconstruction(completion(), path, overwrite=True)
    assert path.read_bytes() != b"mine"


def test_no_global_plotting_state(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_reconstruction(completion(), tmp_path / "a.png")
    draw_training(METRICS, tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")  # another test may have imported it
    assert pyplot is None or not pyplot.get_fignums()


def test_the_same_picture_twice(tmp_path: Path) -> None:
    first = draw_reconstruction(completion(), tmp_path / "a.png").read_bytes()
    assert draw_reconstruction(completion(), tmp_path / "b.png").read_bytes() == first


def test_targets_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    found = tokens()
    (basis,) = fit_token_map(found)
    masks = torch.zeros(2, 8, 12, dtype=torch.bool)
    cut = Segmentation(masks=masks, scores=masks.float(), rule="r", source="s")
    draws: list[Callable[[], Path]] = [
        lambda: draw_attention(maps(), pictures(), path),
        lambda: draw_pca(found, basis, pictures(), path),
        lambda: draw_segmentation(cut, pictures(), path),
        lambda: draw_feature_map(points(3), path),
    ]
    for draw in draws:
        with pytest.raises(FileExistsError):
            draw()
    assert path.read_bytes() == b"mine"
    assert draw_segmentation(cut, pictures(), path, overwrite=True).read_bytes() != b"mine"
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        draw_feature_map(points(3), tmp_path / "a.gif")
    pdf = draw_pca(found, basis, pictures(), tmp_path / "a.pdf")
    assert pdf.read_bytes().startswith(b"%PDF")
