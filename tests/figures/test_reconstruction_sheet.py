"""Sheets of completed images: every format and channel count, pixels where they belong."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from figure_cases import completion, pixels, shown_at, texts

from crate_mae.evaluation.reconstruction import psnr
from crate_mae.figures.reconstruction_sheet import draw_reconstruction, draw_settings
from crate_mae.figures.run_curves import draw_training


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_pixel_of_a_small_image_is_a_whole_square(tmp_path: Path, channels: int) -> None:
    result = completion(channels=channels)
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
    path = draw_reconstruction(completion(1, channels, size), tmp_path / "a.png")
    assert min(pixels(path).shape[:2]) > 100


def test_photographs_keep_their_size_and_large_ones_shrink(tmp_path: Path) -> None:
    photo = draw_reconstruction(completion(1, 3, (224, 224)), tmp_path / "a.png")
    assert len(pixels(photo)) > 224
    large = draw_reconstruction(completion(1, 3, (900, 600)), tmp_path / "b.png")
    assert len(pixels(large)) < 600


@pytest.mark.usefixtures("svg_words")
def test_the_words_of_a_sheet(tmp_path: Path) -> None:
    result = replace(completion(3, 4), mse=torch.tensor([0.1, 0.01, 0.001]))
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
    path = draw_reconstruction(replace(completion(), mse=nothing, psnr=nothing), tmp_path / "a.svg")
    assert "no PSNR" in texts(path)
    assert "MSE" not in texts(path)


@pytest.mark.usefixtures("svg_words")
def test_rows_are_limited_and_it_is_said(tmp_path: Path) -> None:
    words = texts(draw_reconstruction(completion(5), tmp_path / "a.svg", max_rows=2))
    assert "The first 2 of 5 images" in words
    assert "image 2" in words
    assert "image 3" not in words


@pytest.mark.usefixtures("svg_words")
def test_unusual_names_do_no_harm(tmp_path: Path) -> None:
    names = ["猫と犬 🐈.png", "$\\frac{$\n\t_^"]
    assert draw_reconstruction(completion(), tmp_path / "a.png", names=names).exists()
    names = ["f\udcfc1.png", "b"]  # Latin-1, as old archives hold it
    assert "f\\udcfc1.png" in texts(
        draw_reconstruction(completion(), tmp_path / "a.svg", names=names)
    )


def test_perfect_and_broken_predictions(tmp_path: Path) -> None:
    for value in (0.0, math.nan, math.inf):
        result = completion()
        odd = replace(result, prediction=result.prediction * value, error=result.error * value)
        draw_reconstruction(odd, tmp_path / "a.png", overwrite=True)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 names for 2 images"):
        draw_reconstruction(completion(), tmp_path / "a.png", names=["a"])
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_reconstruction(completion(), tmp_path / "a.png", max_rows=0)
    with pytest.raises(ValueError, match="no row of the metrics"):
        draw_training([{"step": 1, "train/loss": math.nan}], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("svg_words")
def test_settings_stand_side_by_side(tmp_path: Path) -> None:
    first = replace(completion(3), mse=torch.tensor([0.1, 0.1, 0.1]), psnr=torch.tensor([10.0] * 3))
    second = replace(completion(3), psnr=torch.tensor([20.0, 22.0, 24.0]))
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
    other = replace(completion(), original=completion().original * 0.5)
    for settings, options, message in (
        ([], {}, "0 settings do not fit"),
        ([("a", completion())] * 13, {}, "13 settings"),
        ([("a", completion()), ("b", other)], {}, "same images"),
        ([("a", completion())], {"max_rows": 0}, "nothing to draw"),
        ([("a", completion())], {"names": ["x"]}, "1 names for 2 images"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_settings(settings, tmp_path / "a.png", **options)
    assert list(tmp_path.iterdir()) == []


def _enlarged(image: torch.Tensor) -> np.ndarray:
    small = (image.permute(1, 2, 0).numpy() * 255).round().astype(int)
    return small.repeat(22, 0).repeat(22, 1)
