"""`crate-mae analyze`: folders, comparisons, figures, refusals."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from model_cases import digits_model
from PIL import Image

from crate_mae import save_model
from crate_mae.analysis import analyse_models, open_models, summary_table
from crate_mae.cli import main
from crate_mae.figures import style as base
from crate_mae.figures.layer_curves import draw_layers, draw_subspace_angles, draw_weights
from crate_mae.models.classifier import CrateClassifier
from crate_mae.sources.inputs import open_images
from crate_mae.weights.weights_folder import weights_hash
from crate_mae.whitebox.table import models_of, read_table

FILES = {f"{name}.{kind}" for name in ("layers", "weights", "angles") for kind in ("png", "svg")}
FILES |= {"layers.csv", "layers.json"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model for digits."""
    return save_model(
        digits_model(seed=3, num_heads=4, decoder_num_heads=4),
        tmp_path_factory.mktemp("models") / "small",
    )


def analyze(weights: Path, out: Path, *words: str) -> int:
    """The exit status of an analysis of a few digits."""
    return main(["analyze", str(weights), "digits", "--limit", "12", "--out", str(out), *words])


@pytest.fixture(scope="module")
def analysed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an analysis, to copy or to read, and what was printed."""
    out = tmp_path_factory.mktemp("analyses") / "analysis"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert analyze(weights, out) == 0
    return out, printed.getvalue()


def test_an_analysis_is_a_folder_of_tables_and_figures(
    weights: Path, analysed: tuple[Path, str]
) -> None:
    out, printed = analysed
    assert "random baseline, encoder" in printed
    assert {item.name for item in out.iterdir()} == FILES
    rows, facts = read_table(out)
    assert models_of(rows) == ["model", "random baseline"]
    assert facts["sha256"] == weights_hash(weights)
    assert facts["images"] == 12
    assert facts["data"] == "digits"
    assert len(facts["overlaps"]["model"]["encoder"]) == 2
    assert np.array(facts["overlaps"]["model"]["decoder"]).shape == (2, 4, 4)
    rate = next(row for row in rows if row.measure == "subspace_coding_rate")
    assert f"{rate.mean:.4g}" in printed
    assert rate.tensor == "LN1(z) U_k"
    assert (rate.eps_squared, rate.normalized) == (0.01, True)
    for name in ("layers.png", "weights.png", "angles.png"):
        pixels = np.asarray(Image.open(out / name).convert("L"))
        assert pixels.std() > 10, f"{name} is blank"
    assert b"<svg" in (out / "layers.svg").read_bytes()


def test_the_same_analysis_gives_the_same_files(
    weights: Path, analysed: tuple[Path, str], tmp_path: Path
) -> None:
    assert analyze(weights, tmp_path / "b") == 0
    for name in sorted(FILES - {"layers.svg", "weights.svg", "angles.svg"}):
        assert (analysed[0] / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_other_weights_and_classifiers_beside(weights: Path, tmp_path: Path) -> None:
    model = open_models(str(weights), [])[0].model
    assert not isinstance(model, CrateClassifier)
    other = save_model(CrateClassifier.from_pretrained(model, num_classes=10), tmp_path / "tuned")
    out = tmp_path / "analysis"
    assert analyze(weights, out, "--compare", str(other), "--compare", "random") == 0
    rows, facts = read_table(out)
    assert models_of(rows) == ["model", "tuned", "random baseline"]
    assert [entry["name"] for entry in facts["models"]] == models_of(rows)
    assert facts["models"][1]["sha256"] == weights_hash(other)

    def encoder(name: str) -> list[tuple[str, float]]:
        return [(r.measure, r.mean) for r in rows if r.model == name and r.side == "encoder"]

    assert encoder("model") == encoder("tuned"), "the classifier's encoder is a copy"
    assert encoder("model") != encoder("random baseline")


def test_weights_called_model_do_not_take_the_place_of_the_model(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights, "model")
    names = [subject.name for subject in open_models(str(weights), ["model", "./model"])]
    assert names == ["model", "model (2)", "./model"]


def test_decoders_behind_encoders_of_other_depths_are_drawn_in_one_place(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_model(digits_model(depth=3), tmp_path / "deeper")
    source = open_images(["digits"], limit=2)
    drawn: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path, **_: object) -> Path:
        drawn[path.name] = figure
        return path

    monkeypatch.setattr(base, "save_figure", keep)
    analyse_models(open_models(str(weights), [str(other)]), source, tmp_path / "a")
    for name in ("weights.png", "layers.png"):
        words = [label.get_text() for label in drawn[name].axes[2].get_xticklabels()]
        assert len(words) == 5, "three encoder and two decoder layers, each place once"
    ticks = [label.get_text() for label in drawn["weights.png"].axes[2].get_xticklabels()]
    assert ticks == ["E0", "E1", "E2", "D0", "D1"]
    starts = {np.asarray(line.get_xdata())[0] for line in drawn["weights.png"].axes[2].lines}
    assert starts == {0, 3}


def test_nothing_is_overwritten_unasked(
    weights: Path,
    analysed: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shutil.copytree(analysed[0], tmp_path / "analysis")
    before = (out / "layers.json").read_text()
    assert analyze(weights, out) == 1
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert analyze(weights, out, "--overwrite", "--eps-squared", "0.5") == 0
    assert json.loads(before)["facts"]["eps_squared"] == 0.01
    assert read_table(out)[1]["eps_squared"] == 0.5
    (out / "mine.txt").write_text("precious")
    assert analyze(weights, out, "--overwrite") == 1
    assert "mine.txt" in capsys.readouterr().err
    assert analyze(weights, out / "mine.txt") == 1
    assert (out / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--eps-squared", "-1"), "eps_squared must be"),
        (("--compare", "nowhere"), "no weights at nowhere"),
        (("--compare", "random", "--no-baselines"), "exclude each other"),
        (("--compare", "random") * 4, "at most 4"),
        (("--compare", "random") * 2, "compared once"),
        (("--batch-size", "0"), "batch_size must be"),
    ],
)
def test_faults_are_one_message(
    weights: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert analyze(weights, tmp_path / "out", *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_figures_refuse_what_they_cannot_draw(analysed: tuple[Path, str], tmp_path: Path) -> None:
    rows, _ = read_table(analysed[0])
    assert "model, encoder" in summary_table(rows)
    target = tmp_path / "x.png"
    for draw in (draw_layers, draw_weights):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw([], target)
        with pytest.raises(ValueError, match="suffix"):
            draw(rows, tmp_path / "x.txt")
    with pytest.raises(ValueError, match="no subspaces"):
        draw_subspace_angles({}, target)
    draw(rows, target)
    with pytest.raises(FileExistsError, match="exists"):
        draw(rows, target)
