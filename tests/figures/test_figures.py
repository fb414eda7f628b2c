"""Pictures: every format and channel count, pixels where they belong, nothing overwritten."""

import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from compared_figures import compared_curves, variant_losses
from crate_mae.evaluation.reconstruction import Reconstruction, psnr
from crate_mae.figures.reconstruction_sheet import draw_reconstruction, draw_settings
from crate_mae.figures.run_curves import draw_training
from crate_mae.figures.style import check_figure_target


def make(
    n: int = 2, channels: int = 3, size: tuple[int, int] = (8, 8), *, unit: float = 1.0
) -> Reconstruction:
    generator = torch.Generator().manual_seed(0)
    original, prediction = torch.rand(2, n, channels, *size, generator=generator) * unit
    mask = torch.tensor([True, False, True, True]).expand(n, -1)
    removed = mask.view(n, 1, 2, 2).repeat_interleave(size[0] // 2, 2)
    removed = removed.repeat_interleave(size[1] // 2, 3)
    error = torch.where(removed, prediction - original, 0).abs().mean(1, keepdim=True)
    mse = torch.rand(n, generator=generator)
    return Reconstruction(
        original=original,
        masked=torch.where(removed, 0.5, original),
        prediction=prediction,
        pasted=torch.where(removed, prediction, original),
        error=error,
        mask=mask,
        mse=mse,
        psnr=psnr(mse),
        mode="raw",
        caption="Pixels were predicted directly.",
    )


METRICS: list[dict[str, float]] = [
    *({"step": s, "train/loss": 1 / (1 + s / 100), "lr": 1e-3} for s in range(0, 1000, 10)),
    *(
        {"step": s, "val/loss": 1 / (1 + s / 90), "val/mean_colour": 0.9, "val/patch_mean": 0.4}
        for s in range(90, 1000, 100)
    ),
]


def shown_at(picture: np.ndarray, block: np.ndarray) -> tuple[int, int] | None:
    """Where an enlarged image (h, w, 3) stands in a picture, exactly, or None."""
    height, width = block.shape[:2]
    near = np.abs(picture.astype(int) - block[0, 0]).max(-1) <= 1  # rounding
    for top, left in zip(*near.nonzero(), strict=True):
        part = picture[top : top + height, left : left + width]
        if part.shape != block.shape or np.abs(part[-1, -1].astype(int) - block[-1, -1]).max() > 1:
            continue
        if np.abs(part.astype(int) - block).max() <= 1:
            return int(top), int(left)
    return None


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
    for path in (
        draw_reconstruction(make(), tmp_path / "new" / f"sheet{suffix}"),
        draw_training(METRICS, tmp_path / f"curves{suffix}"),
    ):
        assert path.read_bytes().startswith(starts[suffix.lower()])
        assert [p for p in path.parent.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_pixel_of_a_small_image_is_a_whole_square(tmp_path: Path, channels: int) -> None:
    result = make(channels=channels)
    picture = pixels(draw_reconstruction(result, tmp_path / "a.png"))
    places = []
    for panel in (result.original, result.masked, result.prediction, result.pasted):
        image = panel[1][:3] if channels > 1 else panel[1].expand(3, -1, -1)
        small = (image.permute(1, 2, 0).numpy() * 255).round().astype(int)
        places.append(shown_at(picture, small.repeat(22, 0).repeat(22, 1)))
    found = [place for place in places if place is not None]
    assert len(found) == 4, places
    assert len({top for top, _ in found}) == 1
    assert [left for _, left in found] == sorted(left for _, left in found)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (4, 40), (40, 4)])
def test_sizes_and_channels(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    path = draw_reconstruction(make(1, channels, size), tmp_path / "a.png")
    assert min(pixels(path).shape[:2]) > 100


def test_photographs_keep_their_size_and_large_ones_shrink(tmp_path: Path) -> None:
    photo = draw_reconstruction(make(1, 3, (224, 224)), tmp_path / "a.png")
    assert len(pixels(photo)) > 224
    large = draw_reconstruction(make(1, 3, (900, 600)), tmp_path / "b.png")
    assert len(pixels(large)) < 600


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def texts(path: Path) -> str:
    """All words of an SVG; `svg_words` keeps them text."""
    root = ElementTree.parse(path).getroot()
    words = (element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    return " ".join(words)


@pytest.fixture
def svg_words() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcParams["svg.fonttype"] = "none"
        yield


@pytest.mark.usefixtures("svg_words")
def test_the_words_of_a_sheet(tmp_path: Path) -> None:
    result = replace(make(3, 4), mse=torch.tensor([0.1, 0.01, 0.001]))
    result = replace(result, psnr=psnr(result.mse))
    path = draw_reconstruction(
        result, tmp_path / "a.svg", names=["a $x$.png", "b", "c" * 80], title="The title"
    )
    words = texts(path)
    for expected in (
        "a $x$.png",
        "PSNR 10.0 dB",
        "PSNR 30.0 dB",
        "The title",
        "75% of patches removed",
        "MSE 0.037",
        "PSNR 20.0 dB",
        "predicted directly",
        "4 channels: channels 1 to 3 as red, green, blue",
        "prediction + visible",
        "absolute error",
    ):
        assert expected in words, expected
    assert "c" * 30 not in words


@pytest.mark.usefixtures("svg_words")
def test_normalised_units_show_no_psnr(tmp_path: Path) -> None:
    nothing = torch.full((2,), torch.nan)
    path = draw_reconstruction(replace(make(), mse=nothing, psnr=nothing), tmp_path / "a.svg")
    assert "no PSNR" in texts(path)
    assert "MSE" not in texts(path)


@pytest.mark.usefixtures("svg_words")
def test_rows_are_limited_and_it_is_said(tmp_path: Path) -> None:
    words = texts(draw_reconstruction(make(5), tmp_path / "a.svg", max_rows=2))
    assert "The first 2 of 5 images" in words
    assert "image 2" in words
    assert "image 3" not in words


@pytest.mark.usefixtures("svg_words")
def test_unusual_names_do_no_harm(tmp_path: Path) -> None:
    names = ["猫と犬 🐈.png", "$\\frac{$\n\t_^"]
    assert draw_reconstruction(make(), tmp_path / "a.png", names=names).exists()
    names = [os.fsdecode(b"f\xfc1.png"), "b"]  # Latin-1, as old archives hold it
    assert "f\\udcfc1.png" in texts(draw_reconstruction(make(), tmp_path / "a.svg", names=names))


def test_perfect_and_broken_predictions(tmp_path: Path) -> None:
    for value in (0.0, math.nan, math.inf):
        result = make()
        odd = replace(result, prediction=result.prediction * value, error=result.error * value)
        draw_reconstruction(odd, tmp_path / "a.png", overwrite=True)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 names for 2 images"):
        draw_reconstruction(make(), tmp_path / "a.png", names=["a"])
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_reconstruction(make(), tmp_path / "a.png", max_rows=0)
    with pytest.raises(ValueError, match="no row of the metrics"):
        draw_training([{"step": 1, "train/loss": math.nan}], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_targets_are_checked_before_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"figures are written as \.png, \.pdf, \.svg"):
        check_figure_target(tmp_path / "a.bmp")
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    draws: list[Callable[[], Path]] = [
        lambda: check_figure_target(path),
        lambda: draw_reconstruction(make(), path),
        lambda: draw_training(METRICS, path),
    ]
    for draw in draws:
        with pytest.raises(FileExistsError, match="exists"):
            draw()
    assert path.read_bytes() == b"mine"
    draw_reconstruction(make(), path, overwrite=True)
    assert path.read_bytes() != b"mine"


def test_no_global_plotting_state(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_reconstruction(make(), tmp_path / "a.png")
    draw_training(METRICS, tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")  # another test may have imported it
    assert pyplot is None or not pyplot.get_fignums()


def test_the_same_picture_twice(tmp_path: Path) -> None:
    first = draw_reconstruction(make(), tmp_path / "a.png").read_bytes()
    assert draw_reconstruction(make(), tmp_path / "b.png").read_bytes() == first


@pytest.mark.parametrize(
    "metrics",
    [
        METRICS,
        [{"step": 1, "train/loss": 0.5}],
        [{"step": 1, "val/loss": 0.5}, {"other": 1.0}],
        [{"step": s, "train/loss": v} for s, v in enumerate([1e6, 1.0, math.nan, 0.5, 0.4])],
        [{"step": s, "train/loss": 1.0, "lr-AdamW": 1e-4 * s} for s in range(100)],
    ],
)
def test_curves_of_what_is_there(tmp_path: Path, metrics: list[dict[str, float]]) -> None:
    assert draw_training(metrics, tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.usefixtures("svg_words")
def test_the_words_of_the_curves(tmp_path: Path) -> None:
    words = texts(draw_training(METRICS, tmp_path / "a.svg"))
    bare = texts(draw_training([{"step": 1, "train/loss": 0.5}], tmp_path / "b.svg"))
    for expected in ("training loss", "validation loss", "mean colour (0.9)", "(0.4)", "step"):
        assert expected in words
    assert "learning rate" in words
    for absent in ("validation loss", "mean colour", "learning rate"):
        assert absent not in bare


@pytest.mark.usefixtures("svg_words")
def test_accuracy_has_a_panel_of_its_own(tmp_path: Path) -> None:
    tuned: list[dict[str, float]] = [
        {"step": step, "val/loss": 1.0 / step, "val/accuracy": 1 - 1 / step} for step in range(2, 9)
    ]
    words = texts(draw_training(tuned, tmp_path / "a.svg"))
    for expected in ("validation accuracy (best 87.5%, last 87.5%)", "accuracy", "loss"):
        assert expected in words
    assert "masked loss" not in words
    assert "masked loss" in texts(draw_training(METRICS, tmp_path / "b.svg"))


@pytest.mark.usefixtures("svg_words")
def test_settings_stand_side_by_side(tmp_path: Path) -> None:
    first = replace(make(3), mse=torch.tensor([0.1, 0.1, 0.1]), psnr=torch.tensor([10.0] * 3))
    second = replace(make(3), psnr=torch.tensor([20.0, 22.0, 24.0]))
    settings = [("random 50%", first), ("grid 90%", second)]
    words = texts(draw_settings(settings, tmp_path / "a.svg", names=["x", "y", "z"], max_rows=2))
    for expected in (
        "random 50% 10.0 dB; grid 90% 22.0 dB",
        "random 50%",
        "grid 90%",
        "completed",
        "The first 2 of 3 images",
    ):
        assert expected in words, expected
    one = pixels(draw_settings(settings[:1], tmp_path / "one.png"))
    two = pixels(draw_settings(settings, tmp_path / "two.png"))
    assert two.shape[1] > one.shape[1] + 150
    place = [shown_at(two, _enlarged(panel[1])) for panel in (first.masked, second.pasted)]
    assert None not in place


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    other = replace(make(), original=make().original * 0.5)
    for settings, options, message in (
        ([], {}, "0 settings do not fit"),
        ([("a", make())] * 13, {}, "13 settings"),
        ([("a", make()), ("b", other)], {}, "same images"),
        ([("a", make())], {"max_rows": 0}, "nothing to draw"),
        ([("a", make())], {"names": ["x"]}, "1 names for 2 images"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_settings(settings, tmp_path / "a.png", **options)
    assert list(tmp_path.iterdir()) == []


def _enlarged(image: torch.Tensor) -> np.ndarray:
    small = (image.permute(1, 2, 0).numpy() * 255).round().astype(int)
    return small.repeat(22, 0).repeat(22, 1)


@pytest.mark.usefixtures("svg_words")
def test_variants_stand_by_what_they_change(tmp_path: Path) -> None:
    losses = {"worse": 0.52, "base": 0.5, "better": 0.45, "best": 0.4}
    words = texts(variant_losses(losses, tmp_path / "v.svg", emphasised={"best"}))
    places = [words.index(name) for name in ("worse", "better", "best ")]
    assert places == sorted(places)  # upwards
    assert all(change in words for change in ("+0.020", "-0.050", "-0.100"))
    assert "line: base, 0.500" in words
    assert "cut" not in words


@pytest.mark.usefixtures("svg_words")
def test_a_bar_longer_than_all_others_is_cut_and_says_so(tmp_path: Path) -> None:
    losses = {"base": 0.5, "lost": 1.5, "best": 0.4, "good": 0.45}
    words = texts(variant_losses(losses, tmp_path / "v.svg"))
    assert "+1.000 (cut)" in words
    assert words.count("(cut)") == 1
    axis = [float(number) for number in re.findall(r"(?<![-+\d.])[01]\.\d+", words)]
    assert max(axis) < 0.8  # the axis ends long before 1.5


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"base": 0.5}, "'base' and another variant"),
        ({"other": 0.5, "one": 0.4}, "'base' and another variant"),
        ({"base": 0.5, "broken": math.nan}, "not finite: broken"),
    ],
)
def test_variants_that_cannot_be_drawn(
    losses: dict[str, float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        variant_losses(losses, tmp_path / "v.png")
    assert not (tmp_path / "v.png").exists()


@pytest.mark.usefixtures("svg_words")
def test_compared_curves_draw_every_seed_and_refuse_nothing(tmp_path: Path) -> None:
    runs = {"crate": [[(1.0, 0.5), (2.0, 0.4)], [(1.0, 0.6)]], "twin": [[(1.0, 0.3)]]}
    words = texts(compared_curves({"epochs": runs, "operations": runs}, tmp_path / "c.svg"))
    assert words.count("crate") == words.count("twin") == 2  # once a panel
    assert "epochs" in words
    assert "operations" in words
    with pytest.raises(ValueError, match="no run has a loss"):
        compared_curves({"epochs": {"crate": []}}, tmp_path / "n.png")
    many = {f"m{i}": [[(1.0, 0.5)]] for i in range(20)}
    with pytest.raises(ValueError, match="20 models are more"):
        compared_curves({"epochs": many}, tmp_path / "n.png")
