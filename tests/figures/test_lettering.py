"""Names of any letters and bytes in figures and feature files."""

import logging
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from figure_cases import completion, points, texts
from matplotlib import font_manager

from crate_mae.evaluation.feature_files import save_features
from crate_mae.evaluation.features import Features
from crate_mae.figures.feature_plane import draw_feature_map
from crate_mae.figures.lettering import WIDE_FONTS, make_legible
from crate_mae.figures.reconstruction_sheet import draw_reconstruction
from crate_mae.figures.style import new_figure
from crate_mae.models.config import Preprocess


def test_letters_without_a_font_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    named = replace(points(2), class_names=("猫", "狗"))
    draw_feature_map(named, tmp_path / "a.png")
    wide = {entry.name for entry in font_manager.fontManager.ttflist} & set(WIDE_FONTS)
    if wide:
        assert not caplog.records
    else:
        assert "no font here has 狗 猫: drawn as boxes; install" in caplog.text
    caplog.clear()
    draw_feature_map(replace(points(2), class_names=("café", "Ωμέγα")), tmp_path / "b.png")
    assert not caplog.records


def test_a_font_that_has_the_letters_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("crate_mae.figures.lettering.WIDE_FONTS", ("absent", "DejaVu Sans"))
    figure = new_figure(2, 2)
    text = figure.text(0.5, 0.5, "ɸ ✓", fontfamily="cmr10")  # Computer Modern has neither
    with caplog.at_level(logging.WARNING):
        make_legible(figure)
    assert text.get_fontfamily() == ["cmr10", "DejaVu Sans"]
    assert not caplog.records


@pytest.mark.usefixtures("svg_words")
def test_control_characters_leave_a_picture_well_formed(tmp_path: Path) -> None:
    names = ["\x1b[31mred.jpg", "caf\udce9.png"]
    path = draw_reconstruction(completion(), tmp_path / "a.svg", names=names)
    xml.dom.minidom.parse(str(path))
    assert "\\x1b[31mred.jpg" in texts(path)
    named = replace(points(2), class_names=("caf\udce9", "b\x07"))
    path = draw_feature_map(named, tmp_path / "b.svg")
    xml.dom.minidom.parse(str(path))
    assert "caf\\udce9" in texts(path)


def test_names_that_are_not_utf8_in_parquet(tmp_path: Path) -> None:
    features = Features(
        values=torch.zeros(2, 3), labels=None, names=["caf\udce9/1.png", "猫.png"],
        class_names=None, pool="mean", unreadable=[],
    )  # fmt: skip
    path = tmp_path / "x.parquet"
    save_features(features, path, preprocess=Preprocess(size=(8, 8)), weights_hash=None)
    assert pq.read_table(path)["name"].to_pylist() == ["caf\\udce9/1.png", "猫.png"]
