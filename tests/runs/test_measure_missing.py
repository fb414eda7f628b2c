"""Runs of every kind of model are measured, and what cannot be is said once."""

import json
from pathlib import Path

import pytest
import yaml
from data_cases import GREY, MODEL

from crate_mae.evaluation.backbones import save_backbone
from crate_mae.models.backbone import Backbone
from crate_mae.runs.compare_runs import compared
from crate_mae.runs.contents import Run, read_run
from crate_mae.runs.measure_missing import complete_run
from crate_mae.vitmae.encoder import ViTEncoder
from crate_mae.vitmae.model import build_vitmae, vitmae_config

pytest.importorskip("transformers")


def run_of(folder: Path, model: Backbone, method: str) -> Run:
    """A run on digits that left these weights and no more than its settings."""
    save_backbone(model, folder / "weights")
    settings = {
        method: {"kind": "random", "ratio": 0.75},
        "data": {"source": "digits", "val_split": "test"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return read_run(folder)


def test_a_vit_is_measured_as_a_crate_is(tmp_path: Path) -> None:
    model = build_vitmae(vitmae_config(MODEL), preprocess=GREY, seed=0)
    run = run_of(tmp_path / "vit", model, "masking")
    before = list(run.problems)
    complete_run(run, limit=40, test_limit=20)
    values = json.loads((run.folder / "evaluation.json").read_text())
    assert (values["data"], values["split"]) == ("digits", "train")
    rows = values["rows"]
    assert {row["subject"] for row in rows} == {"model", "random baseline", "raw pixels"}
    assert {row["pool"] for row in rows} == {"mean", "pixels"}
    assert (run.folder / "reconstruction.png").is_file()
    (left_out,) = run.problems[len(before) :]
    assert left_out.startswith("Left out, layer analysis: ")
    complete_run(run)
    assert run.problems == [*before, left_out]
    assert f"{run.folder}: {left_out}" in compared([run, run]).table()


def test_an_encoder_that_learned_from_views_is_measured(tmp_path: Path) -> None:
    model = ViTEncoder(MODEL)
    model.preprocess = GREY
    run = run_of(tmp_path / "views", model, "simdino")
    complete_run(run, limit=40, test_limit=20)
    rows = json.loads((run.folder / "evaluation.json").read_text())["rows"]
    assert {row["pool"] for row in rows} == {"cls", "pixels"}
