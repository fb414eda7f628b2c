"""The test of a run on masks: on its page, on the card of its weights, in plans of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from mask_cases import small_segment, write_shapes
from report_cases import read_page

from crate_mae.evaluation.answers import Rule, mask_answers
from crate_mae.plan.plan import plan_run
from crate_mae.plan.plan_text import plan_text
from crate_mae.publish.package import build_package, write_folder
from crate_mae.report.page import write_report
from crate_mae.runs.contents import read_run
from crate_mae.training.config import FinetuneConfig
from crate_mae.training.finetune import finetune
from crate_mae.weights.weights_folder import load_model


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    folder = write_shapes(tmp_path_factory.mktemp("secret"))
    return small_segment(
        f"imagefolder:{folder / 'images'}", str(folder / "masks"), head="depict-cross",
        class_names=["ground", "bri*ght", "<dark>"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(config: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "shapes"
    finetune(config, folder)
    return folder


def test_the_page_of_a_run_on_masks(run: Path, tmp_path: Path) -> None:
    made = write_report(run, tmp_path / "page.html", measure=False)
    text = made.path.read_text("utf-8")
    found = json.loads((run / "evaluation.json").read_text())
    assert read_run(run).is_segmenter
    assert f"{found['mean_iou']:.4f}" in text, "in the glance on top"
    assert "test mean IoU" in text
    assert "classes of pixels" in text
    assert "depict-cross" in text
    assert "&lt;dark&gt;" in text
    assert "<dark>" not in text
    assert f"crate-mae segment {run} imagefolder:" in text
    page = read_page(made.path)
    assert any("the classes of their pixels" in str(image["alt"]) for image in page.images)
    assert any("Validation mean IoU" in cell for cell in text.split("<"))


def test_the_card_and_the_package_name_no_place(run: Path, tmp_path: Path) -> None:
    package = build_package(run, name="owner/shapes", licence="mit")
    folder = write_folder(package, tmp_path / "published")
    card = (folder / "README.md").read_text("utf-8")
    found = json.loads((run / "evaluation.json").read_text())
    assert "pipeline_tag: image-segmentation" in card
    assert f"mean IoU {found['mean_iou']:.4f}" in card
    assert "segmentation head (depict-cross)" in card
    assert "ground, bri" in card
    assert "bri*ght" not in card, "what Markdown would read is escaped"
    for name in ("README.md", "recipe.yaml", "metrics.json", "config.json"):
        assert "secret" not in (folder / name).read_text("utf-8"), name
    assert "masks: PATH" in (folder / "recipe.yaml").read_text("utf-8")
    assert load_model(folder).kind == "CrateSegmenter"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"]["mean_iou"] == found["mean_iou"]
    assert metrics["validation"]["val/mean_iou"] > 0


def test_answers_of_a_test_on_masks() -> None:
    found = {"mean_iou": 0.5, "majority_mean_iou": 0.3, "majority": "sky", "iou": {"a": 0, "b": 1}}
    answers = mask_answers(found)
    assert [answer.good for answer in answers] == [True, False]
    assert "0.5000, above sky, the most frequent class everywhere (0.3000)" in answers[0].text
    assert "Never told right: a;" in answers[1].text
    assert all(answer.rule in get_args(Rule) for answer in answers)
    (worse,) = mask_answers({**found, "mean_iou": 0.2, "iou": {"a": 0.1}})
    assert worse.good is False
    assert mask_answers({}) == []


def test_a_plan_of_a_run_on_masks(config: FinetuneConfig, run: Path) -> None:
    found = plan_run(config, measure=False)
    assert (found.images.count, found.classes) == (17, 3)
    assert "3 classes of pixels, depict-cross head" in plan_text(found)
    parts = json.loads((run / "summary.json").read_text())
    assert found.schedule.steps == parts["step"]
    model = load_model(run)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    frozen = replace(
        config, segment=replace(config.segment, freeze=True),
        optim=replace(config.optim, drop_path=0.0),
    )  # fmt: skip
    assert plan_run(frozen, measure=False).parameters == sum(
        p.numel() for name, p in model.named_parameters() if name.startswith("decoder.")
    )
    assumed = plan_run(replace(config, data=replace(config.data, source="hf:a/b")), images=40,
                       measure=False)  # fmt: skip
    assert assumed.classes == 150
