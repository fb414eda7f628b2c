"""What the documents promise: links lead somewhere, commands run, lines hold what they say."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import digits_model
from pages import PAGES, ROOT, SMALL, anchors_of, code_of, commands_of
from PIL import Image

from crate_mae import CrateMAE, build_model, load_model, save_model
from crate_mae.cli import VERBS, main
from crate_mae.models.config import PRESETS

README = (ROOT / "README.md").read_text("utf-8")
EVERYDAY = ["pretrain", "reconstruct", "extract", "probe", "report"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    page = path.read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", page) + re.findall(r"^\[.+\]: (\S+)$", page, re.M)
    for target in targets:
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = path.parent / file if file else path
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors_of(found.read_text("utf-8")), target
    names = set(re.findall(r"^\[(.+)\]: ", page, re.M))
    assert set(re.findall(r"\]\[(\w+)\]", page)) <= names


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_lines_of_prose_are_at_most_100_characters_long(path: Path) -> None:
    """Rows of tables, code, and links that no line break can divide may be longer."""
    fenced = False
    for line in path.read_text("utf-8").splitlines():
        fenced ^= line.startswith("```")
        one = re.sub(r"!?\[[^\]]*\](\([^)]*\)|: \S+|\[\w+\])|`[^`]*`", "", line).strip(" .,;:()")
        if len(line) > 100 and not fenced and not line.startswith("|"):
            assert " " not in one, line


@pytest.mark.parametrize("page", ["model.md", "family.md"])
def test_pages_of_equations_point_at_the_right_lines(page: str) -> None:
    rows = re.findall(
        r"`([\w.]+)` \| \[[\w.]+:(\d+)\]\(\.\./([\w./]+)#L(\d+)\)",
        (ROOT / "docs" / page).read_text("utf-8"),
    )
    assert len(rows) >= 14
    for symbol, shown, file, line in rows:
        assert shown == line
        text = (ROOT / file).read_text("utf-8").splitlines()[int(line) - 1].strip()
        owner, _, name = symbol.rpartition(".")
        wanted = f"class {owner}" if name == "forward" else f"def {name}"
        assert text.startswith(wanted), f"{file}:{line} is {text!r}, not {wanted}"


def test_what_documents_take_from_the_code_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "fill_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_parameter_counts_of_the_model_page() -> None:
    page = (ROOT / "docs" / "model.md").read_text("utf-8")
    for name in ("tiny", "small", "base", "large"):
        with torch.device("meta"):
            count = sum(p.numel() for p in build_model(PRESETS[name]).parameters())
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {count / 1e6:.2f} M |" in row


def test_the_readme_is_short_and_names_real_targets() -> None:
    assert len(README.split()) <= 900
    assert max(map(len, README.splitlines())) <= 100
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [target for target, *_ in commands_of(README, "make")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it after the demo: pictures/ and a model in runs/demo."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures" / "summer").mkdir(parents=True)
    for index in range(20):
        pixels = generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / "summer" / f"{index}.jpg")
    save_model(digits_model(), tmp_path / "runs" / "demo" / "weights")
    monkeypatch.chdir(tmp_path)
    # Whether a command runs does not depend on how far its linear probe is from the minimum.
    monkeypatch.setattr("crate_mae.evaluation.regression.MAX_STEPS", 20)
    return tmp_path


def test_the_readmes_commands_run(workplace: Path) -> None:
    commands = commands_of(README)
    assert [verb for verb, *_ in commands] == EVERYDAY
    assert set(EVERYDAY) <= set(VERBS)
    for verb, *words in commands:
        assert main([verb, *words, *(SMALL if verb == "pretrain" else [])]) == 0, (verb, words)
    for made in (
        "runs/mine/weights/model.safetensors", "completed.png", "features.safetensors",
        "runs/mine/report.html",
    ):  # fmt: skip
        assert (workplace / made).is_file(), made
    assert main(["pretrain", "--resume", "runs/mine"]) == 0


def test_the_readmes_python_runs(workplace: Path) -> None:
    (block,) = code_of(README)
    scope: dict[str, object] = {}
    exec(block, scope)
    features, sparse = scope["features"], scope["sparse"]
    assert isinstance(scope["trained"], CrateMAE)
    assert isinstance(features, torch.Tensor)
    assert isinstance(sparse, torch.Tensor)
    assert features.shape == sparse.shape == (2, 193, 576)
    assert (sparse >= 0).all()
    maps = scope["maps"]
    assert isinstance(maps, dict)
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        0: (1, 12, 193, 193),
        11: (1, 12, 193, 193),
    }
    assert workplace.exists()


def test_the_weights_pages_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = code_of((ROOT / "docs" / "weights.md").read_text("utf-8"))
    exec(block, {})
    facts = load_model("my-weights").preprocess
    assert facts.mean == pytest.approx([0.305], abs=0.01), "of digits, whose pixels are 0 to 16"
    assert "is assumed" not in caplog.text


def test_every_package_is_in_the_wheel() -> None:
    """Packages are listed by hand, because the recipes come from another folder."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
        "packages"
    ]
    source = ROOT / "src"
    found = {
        ".".join(path.parent.relative_to(source).parts) for path in source.rglob("__init__.py")
    }
    assert found | {"crate_mae.recipes"} == set(listed)


def rows_of_layers() -> dict[tuple[str, str, int, str], float]:
    """The measured means of the CIFAR-10 analysis by (model, measure, encoder layer, point)."""
    with (ROOT / "docs" / "results" / "cifar10-layers.csv").open(newline="") as file:
        return {
            (row["model"], row["measure"], int(row["layer"]), row["point"]): float(row["mean"])
            for row in csv.DictReader(file)
            if row["side"] == "encoder" and not row["head"]
        }


def test_the_white_box_tables_hold_what_was_measured() -> None:
    measured = rows_of_layers()
    page = (ROOT / "docs" / "whitebox.md").read_text("utf-8")
    tables = [
        [("subspace_coding_rate", point) for point in ("input", "compress", "sparsify")],
        [(f"{name}_gradient_cosine", "compress") for name in ("mssa", "mssa_shift", "shrink")],
    ]
    found = re.findall(r"^\| (\d) \|((?: -?[\d.]+ \|){6})$", page, re.MULTILINE)
    assert len(found) == 8
    for index, (layer, cells) in enumerate(found):
        shown = cells.strip(" |").split(" | ")
        expected = [
            measured[model, measure, int(layer), point]
            for model in ("model", "random baseline")
            for measure, point in tables[index // 4]
        ]
        for cell, value in zip(shown, expected, strict=True):
            assert float(cell) == round(value, len(cell.partition(".")[2])), (layer, cell, value)
