"""The pictures of compression beside denoising, and the verb that makes them."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from crate_mae.cli import main
from crate_mae.figures import theory_curves
from crate_mae.figures.theory_curves import (
    AXES,
    LAYER_LINES,
    MEASURE_WORDS,
    draw_theory,
    draw_theory_moves,
)
from crate_mae.whitebox.attention_only_study import LAYERS
from crate_mae.whitebox.denoising_study import MEASURES, METHODS, study, sweeps


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return study(sweeps(quick=True)[:6], seeds=2, num_tokens=8)  # the first two axes


def test_every_named_measure_is_measured() -> None:
    assert set(MEASURE_WORDS) <= set(MEASURES)
    assert set(LAYER_LINES) == set(LAYERS)
    assert set(AXES) == {axis for axis, _ in sweeps()}


@pytest.mark.parametrize("measure", ["turning", "error", "rate"])
def test_curves_name_their_axes_and_lines(
    rows: list[dict[str, Any]], tmp_path: Path, measure: str
) -> None:
    path = draw_theory(rows, tmp_path / "curves.svg", measure=measure)
    texts = ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}g")
    groups = [group.get("id", "") for group in texts]
    assert sum(group.startswith("axes_") for group in groups) == 2
    again = draw_theory(rows, tmp_path / "again.svg", measure=measure)
    assert "exact denoiser" in path.read_text()
    assert len(again.read_text()) == len(path.read_text())


def test_a_picture_is_drawn_and_never_overwritten(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = draw_theory(rows, tmp_path / "a.png", measure="outside")
    assert np.asarray(Image.open(path).convert("L")).std() > 5
    with pytest.raises(FileExistsError, match="exists"):
        draw_theory(rows, path, measure="outside")
    with pytest.raises(ValueError, match="suffix"):
        draw_theory_moves(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="no row has the measure 'beauty'"):
        draw_theory(rows, tmp_path / "b.png", measure="beauty")


def test_moves_depend_on_the_seed_alone(tmp_path: Path) -> None:
    first, same = (draw_theory_moves(tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert first == same
    assert draw_theory_moves(tmp_path / "c.png", seed=1).read_bytes() != first


def test_the_verb_writes_table_numbers_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    panels: dict[str, int] = {}

    def draw(rows: list[dict[str, Any]], path: Path, *, measure: str) -> Path:
        """All axes in one of the pictures, one in the others: each panel takes its time."""
        axes = list({row["axis"]: None for row in rows})
        panels[measure] = len(axes)
        shown = axes if measure == "error" else axes[:1]
        return draw_theory([row for row in rows if row["axis"] in shown], path, measure=measure)

    monkeypatch.setattr(theory_curves, "draw_theory", draw)
    out = tmp_path / "new" / "theory"
    words = ["theory", "--out", str(out), "--quick", "--seeds", "1", "--tokens", "16"]
    assert main([*words, "--seed", "3"]) == 0
    assert panels == dict.fromkeys(("alignment", "turning", "error", "outside"), len(AXES))
    shown = capsys.readouterr().out
    assert all(f"\n{method} " in shown for method in METHODS)
    names = {path.name for path in out.iterdir()}
    drawn = ("alignment", "turning", "error", "outside", "moves", "layers")
    pictures = {f"theory-{n}.png" for n in drawn}
    tables = {f"{n}.{end}" for n in ("theory", "theory-layers") for end in ("csv", "json")}
    assert names == tables | pictures
    assert all(f"\ndelta 0.1 {method} " in shown for method in LAYERS)
    layers = json.loads((out / "theory-layers.json").read_text())
    assert layers["parameters"] == {"seeds": 1, "seed": 3}
    assert len(layers["rows"]) == 3 * len(LAYERS) * 9
    content = json.loads((out / "theory.json").read_text())
    assert content["parameters"]["seed"] == 3
    with (out / "theory.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 24 * len(METHODS) * len(MEASURES)
    assert main(words) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--tokens", "0"]])
def test_the_verb_refuses_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert main(["theory", "--out", str(tmp_path / "a"), *wrong]) == 1
    assert "at least 1" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
