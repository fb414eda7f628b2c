"""What the documents promise: links lead somewhere, commands run, lines hold what they say."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import PAGES, ROOT, code_of, commands_of
from PIL import Image

from crate_mae import build_model, save_model
from crate_mae.cli import VERBS, main
from crate_mae.models.config import PRESETS, Preprocess

README = (ROOT / "README.md").read_text()

# Makes any training command of the documents small.
SMALL = [
    *("--model.dim", "16", "--model.depth", "1", "--model.decoder_depth", "1"),
    *("--model.num_heads", "2", "--model.decoder_num_heads", "2", "--optim.epochs", "2"),
    *("--optim.batch_size", "8", "--optim.warmup_epochs", "1", "--trainer.accelerator", "cpu"),
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_model_page_points_at_the_right_lines() -> None:
    rows = re.findall(
        r"`([\w.]+)` \| \[[\w.]+:(\d+)\]\(\.\./([\w./]+)#L(\d+)\)",
        (ROOT / "docs" / "model.md").read_text(),
    )
    assert len(rows) >= 14
    for symbol, shown, file, line in rows:
        assert shown == line
        text = (ROOT / file).read_text().splitlines()[int(line) - 1].strip()
        owner, _, name = symbol.rpartition(".")
        wanted = f"class {owner}" if name == "forward" else f"def {name}"
        assert text.startswith(wanted), f"{file}:{line} is {text!r}, not {wanted}"


def test_parameter_counts_of_the_model_page() -> None:
    page = (ROOT / "docs" / "model.md").read_text()
    for name in ("tiny", "small", "base", "large"):
        with torch.device("meta"):
            count = sum(p.numel() for p in build_model(PRESETS[name]).parameters())
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {count / 1e6:.2f} M |" in row


def test_the_readme_is_short_and_names_real_targets() -> None:
    assert len(README.split()) <= 1_200
    makefile = (ROOT / "Makefile").read_text()
    for target in [target for target, *_ in commands_of(README, "make")]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it after the demo: pictures/ and a model in runs/demo."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures" / "summer").mkdir(parents=True)
    for index in range(20):
        pixels = generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / "summer" / f"{index}.jpg")
    model = build_model("debug", image_size=8, patch_size=2, channels=1)
    model.preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.3,), std=(0.4,))
    save_model(model, tmp_path / "runs" / "demo" / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_commands_run(workplace: Path) -> None:
    commands = commands_of(README)
    assert len(commands) == 11
    short = {
        "plan": ["--no-measure", *SMALL],
        "pretrain": SMALL,
        "finetune": ["--optim.epochs", "2", *SMALL[-2:]],
    }
    for verb, *words in commands:
        assert verb in VERBS
        assert main([verb, *words, *short.get(verb, [])]) == 0, (verb, words)
    for made in (
        "completed.png", "attention.png", "features.safetensors", "analysis/layers.png",
        "runs/mine/weights/model.safetensors", "runs/mine/report.html",
        "runs/classes/evaluation.json", "published/README.md",
    ):  # fmt: skip
        assert (workplace / made).is_file(), made
    assert main(["pretrain", "--resume", "runs/mine"]) == 0


def test_the_readmes_python_runs(workplace: Path) -> None:
    (block,) = code_of(README)
    scope: dict[str, object] = {}
    exec(block, scope)
    features, sparse = scope["features"], scope["sparse"]
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


def test_every_package_is_in_the_wheel() -> None:
    """Packages are listed by hand, because the recipes come from another folder."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
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
    page = (ROOT / "docs" / "whitebox.md").read_text()
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
            for model in ("model", "random twin")
            for measure, point in tables[index // 4]
        ]
        for cell, value in zip(shown, expected, strict=True):
            assert float(cell) == round(value, len(cell.partition(".")[2])), (layer, cell, value)
