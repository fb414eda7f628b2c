"""The table of pools: rows of several files of probe and kNN, cell by cell."""

import json
from pathlib import Path
from typing import Any

import pytest

import pools
from crate_mae import build_model, save_model
from crate_mae.cli import main as crate_mae


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `probe` and `knn` write of small weights, on a few digits."""
    folder = tmp_path_factory.mktemp("files")
    weights = folder / "weights"
    save_model(build_model("debug", image_size=8, patch_size=2, channels=1), weights)
    few = ["--limit", "60", "--test-limit", "30", "--pool", "mean,layers"]
    made = {}
    for name, words in {
        "probe": ["probe", "--penalties", "1,0.1"], "knn": ["knn"],
        "white": ["knn", "--whiten", "yes"],
    }.items():  # fmt: skip
        made[name] = folder / f"{name}.json"
        verb, *more = words
        told = [*few, *more, "--json", str(made[name])]
        assert crate_mae([verb, str(weights), "digits", *told]) == 0
    return made


def rows(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text("utf-8"))["rows"])


def test_every_cell_is_the_accuracy_of_its_row(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, page = tmp_path / "record.json", tmp_path / "page.md"
    page.write_text("a\n\n<!-- pools -->\n\nold\n\n<!-- /pools -->\n\nb\n")
    words = [f"small={path}" for path in files.values()]
    capsys.readouterr()
    assert pools.main([*words, "--json", str(target), "--docs", str(page)]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head == "| features of | pool | width | linear probe | kNN | kNN, whitened |"
    assert len(lines) == 5
    expected = [
        (subject, row["pool"], row["dim"])
        for row in rows(files["probe"])
        for subject in [row["subject"].replace("model", "`small`")]
    ]
    for line, (subject, pool, width) in zip(lines, expected, strict=True):
        shown, called, wide, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert shown.startswith(subject)
        assert called == ("" if pool == "pixels" else f"`{pool}`")
        assert wide == f"{width:,}"
        for cell, path in zip(cells, files.values(), strict=True):
            (row,) = [
                row
                for row in rows(path)
                if (row["subject"].replace("model", "`small`"), row["pool"]) == (subject, pool)
            ]
            assert cell == f"{100 * row['accuracy']:.1f} %"
    assert "\n".join(lines) in page.read_text()
    text = target.read_text("utf-8")
    assert "parquet" not in text
    assert str(tmp_path) not in text
    page.write_text("<!-- pools -->\n\n<!-- /pools -->\n")
    assert pools.main(["--record", str(target), "--docs", str(page)]) == 0
    assert "\n".join(lines) in page.read_text()


def test_what_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was measured twice"):
        pools.main([f"a={files['probe']}", f"a={files['probe']}"])
    with pytest.raises(ValueError, match="name files as NAME=FILE, not 'lonely'"):
        pools.main(["lonely"])
    with pytest.raises(SystemExit):
        pools.main([])
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(json.loads(files["knn"].read_text()) | {"complete": False}))
    with pytest.raises(ValueError, match=r"cut\.json was not finished"):
        pools.main([f"a={cut}"])
