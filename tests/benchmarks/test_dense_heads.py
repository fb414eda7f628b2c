"""The measurement of heads: its runs, its rows once and no more, numbers that agree with loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import MODEL
from mask_cases import shape
from PIL import Image

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import Preprocess
from crate_mae.weights.weights_folder import save_model
from dense_heads import WITHOUT_LABELS, main, table_lines


def test_rows_are_measured_once_and_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = []
    for part, numbers in (("train", range(10)), ("test", range(50, 55))):
        (tmp_path / "images" / part).mkdir(parents=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        for number in numbers:
            image, mask = shape(number, (8, 8))
            mask = (mask == 1).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "images" / part / f"{number}.bmp")
            Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
            truth += [mask] if part == "test" else []
    torch.manual_seed(0)
    model = CrateMAE(MODEL)
    model.preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.3,))
    save_model(model, tmp_path / "weights")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- dense-heads -->\n<!-- /dense-heads -->\nafter\n")
    words = [
        "--source", f"imagefolder:{tmp_path / 'images'}", "--masks", str(tmp_path / "masks"),
        "--name", "shapes", "--weights", str(tmp_path / "weights"), "--epochs", "1",
        "--heads", "linear", "--runs", str(tmp_path / "runs"), "--json", str(tmp_path / "a.json"),
        "--docs", str(page),
    ]  # fmt: skip
    assert main(words) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    rows = {row["encoder"]: row for row in record["rows"]}
    assert {"frozen", "random, frozen", "trained", WITHOUT_LABELS} <= set(rows)
    ground = np.mean(truth)
    everything = rows["no model: all foreground"]
    assert everything["pixel_accuracy"] == pytest.approx(ground)
    assert everything["mean_iou"] == pytest.approx(ground / 2)
    assert everything["foreground_iou"] == pytest.approx(ground, rel=1e-6)
    assert rows["no model: all background"]["pixel_accuracy"] == pytest.approx(1 - ground)
    known = json.loads((tmp_path / "runs" / "frozen-linear" / "evaluation.json").read_text())
    assert rows["frozen"]["mean_iou"] == pytest.approx(known["mean_iou"])
    assert len(table_lines(record)) == 2 + len(record["rows"])
    assert table_lines(record)[-1] in page.read_text()
    written = (tmp_path / "a.json").read_bytes()
    capsys.readouterr()
    assert main(words) == 0, "nothing is trained or measured again"
    assert (tmp_path / "a.json").read_bytes() == written
