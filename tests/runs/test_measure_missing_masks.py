"""What a run is measured with is its own: its masks, and images that it did not train on."""

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from data_cases import GREY, MODEL, Pictures
from training_runs import small_config

from crate_mae.batches.config import DataConfig, Masking
from crate_mae.batches.data_module import ImageDataModule
from crate_mae.batches.masked import MaskedBatches
from crate_mae.cli import main
from crate_mae.evaluation.backbones import save_backbone
from crate_mae.evaluation.reconstruction import Reconstruction
from crate_mae.figures.reconstruction_sheet import draw_reconstruction
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.report.pictures import completion_data
from crate_mae.report.sections import measuring_commands
from crate_mae.runs import measure_missing as measure
from crate_mae.runs.contents import Run, read_run
from crate_mae.runs.measure_missing import complete_run, held_out
from crate_mae.runs.run_images import python_source
from crate_mae.sources.base import ImageSource

SIDE = MODEL.image_hw[0] // MODEL.patch_hw[0]


@pytest.fixture
def masked_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Makes a run on digits with such masks, of which pictures alone are measured."""
    monkeypatch.setattr(measure, "_evaluate", lambda *_: None)
    monkeypatch.setattr(measure, "_analyse", lambda *_: None)

    def make(**masking: Any) -> Run:
        torch.manual_seed(0)
        model = CrateMAE(MODEL)
        model.preprocess = GREY
        save_backbone(model, tmp_path / "weights", overwrite=True)
        settings = {"masking": masking, "data": {"source": "digits", "val_split": "test"}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        return read_run(tmp_path)

    return make


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Reconstruction]:
    """What is drawn, in order."""
    kept: list[Reconstruction] = []

    def keep(result: Reconstruction, *arguments: Any, **options: Any) -> Path:
        kept.append(result)
        return draw_reconstruction(result, *arguments, **options)

    monkeypatch.setattr(measure, "draw_reconstruction", keep)
    return kept


def squares(result: Reconstruction, side: int) -> torch.Tensor:
    """How many patches are removed of every square (B, squares) of so many by so many patches."""
    cells = result.mask.view(-1, SIDE // side, side, SIDE // side, side)
    return cells.sum(dim=(2, 4)).flatten(1)


def test_squares_are_removed_whole(
    masked_run: Callable[..., Run], drawn: list[Reconstruction]
) -> None:
    run = masked_run(kind="random", ratio=0.5, square=2)
    complete_run(run)
    (result,) = drawn
    assert len(result.mask) == measure.PICTURES
    assert set(squares(result, 2).flatten().tolist()) == {0, 4}
    assert set(result.mask.sum(dim=1).tolist()) == {SIDE * SIDE // 2}
    facts = json.loads((run.folder / "reconstruction.json").read_text())
    removed = result.mask.view(-1, SIDE, SIDE)
    removed = removed.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)[:, None]
    error = (result.prediction - result.original).double().square()
    mse = torch.stack([e[r].mean() for e, r in zip(error, removed, strict=True)])
    assert facts["psnr"] == pytest.approx((-10 * mse.log10()).tolist(), abs=1e-3)
    caption = completion_data(run)["sheet"].caption
    assert "50% (random, squares of 2 x 2) of the patches, here 50% to 50%" in caption
    assert "no command draws this picture" in caption


def test_a_range_of_ratios_is_drawn_from(
    masked_run: Callable[..., Run], drawn: list[Reconstruction]
) -> None:
    run = masked_run(kind="random", ratio=0.25, ratio_max=0.75)
    complete_run(run)
    shares = drawn[0].mask.double().mean(dim=1)
    assert 0.25 <= float(shares.min()) < float(shares.max()) <= 0.75
    assert float(shares.mean()) > 0.25, "not the low end alone"
    facts = json.loads((run.folder / "reconstruction.json").read_text())
    assert facts["removed"] == pytest.approx(shares.tolist())


def test_a_ratio_by_step_is_that_of_validation(
    masked_run: Callable[..., Run], drawn: list[Reconstruction]
) -> None:
    masking = Masking(ratio=0.25, ratio_max=0.75, ratio_per="step")
    run = masked_run(**asdict(masking))
    complete_run(run)
    kept = SIDE * SIDE // 2  # the middle of the range
    assert set((~drawn[0].mask).sum(dim=1).tolist()) == {kept}
    assert drawn[0].mask.equal(validation_masks(masking))


def validation_masks(masking: Masking) -> torch.Tensor:
    """The masks that a run's validation has for its first images."""
    config = small_config(data=DataConfig(source="digits", val_split="test", workers=0))
    data = ImageDataModule(
        config.data, model=config.model, kind=MaskedBatches(masking=masking),
        batch_size=measure.PICTURES,
    )  # fmt: skip
    data.open()
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    masks: torch.Tensor = next(iter(loader))["mask"]
    return masks


def test_pictures_of_other_masks_are_measured_again(
    masked_run: Callable[..., Run], drawn: list[Reconstruction]
) -> None:
    run = masked_run(kind="random", ratio=0.5)
    complete_run(run)
    complete_run(run)
    assert len(drawn) == 1, "these are the run's own"
    caption = completion_data(run)["sheet"].caption
    assert "no command" not in caption
    run = masked_run(kind="random", ratio=0.5, square=2)
    assert "NOT THE MASKS OF THIS RUN" in completion_data(run)["sheet"].caption
    complete_run(run)
    complete_run(run)
    assert len(drawn) == 2
    assert "NOT THE MASKS" not in completion_data(run)["sheet"].caption


@pytest.fixture(scope="module")
def opened() -> Callable[..., tuple[Run, ImageDataModule]]:
    """Opens 200 digits as a run does, with these validation images from Python, if any."""

    def open_run(**given: ImageSource) -> tuple[Run, ImageDataModule]:
        config = small_config(data=DataConfig(source="digits", limit=200, val_share=0.2))
        data = ImageDataModule(
            config.data, model=config.model, kind=MaskedBatches(masking=config.masking),
            batch_size=32, **given,  # type: ignore[arg-type]
        )  # fmt: skip
        data.open()
        run = Run(folder=Path(), config=asdict(config), config_text="", data=data.facts())
        run.commands = ["(called from Python)"]
        return run, data

    return open_run


@pytest.mark.parametrize("count", [3, 40, 50, 100])
def test_images_that_were_trained_on_are_not_called_held_out(
    opened: Callable[..., tuple[Run, ImageDataModule]], count: int
) -> None:
    run, data = opened(val_dataset=Pictures(count))
    trained = {data.train_source.name(i) for i in range(200)}  # type: ignore[union-attr]
    found = held_out(run, 8)
    assert {found.source.name(i) for i in range(8)} <= trained
    assert found.trained_on


def test_images_that_a_run_from_python_held_back_stay_held_out(
    opened: Callable[..., tuple[Run, ImageDataModule]],
) -> None:
    run, data = opened()
    trained = {data.train_source.name(i) for i in range(160)}  # type: ignore[union-attr]
    found = held_out(run, 8)
    assert not {found.source.name(i) for i in range(8)} & trained
    assert not found.trained_on
    # Unreadable images take part in neither.
    run.data.update(images=158, validation_images=39, unreadable={"a": "", "b": "", "c": ""})
    assert not held_out(run, 8).trained_on
    run.data.update(unreadable={})
    assert held_out(run, 8).trained_on, "there are more images now than there were"


def test_a_source_made_in_python_is_no_address(
    opened: Callable[..., tuple[Run, ImageDataModule]],
) -> None:
    run, _ = opened(dataset=Pictures(300))
    assert python_source(run) == "pictures"
    with pytest.raises(ValueError, match=r"made in Python \(pictures\)"):
        held_out(run, 8)
    run, _ = opened()
    assert python_source(run) is None


def test_a_run_with_fewer_images_records_how_many_a_probe_learns_from(
    masked_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(measure, "_analyse", lambda *_: None)
    # Few images can be separated, where the minimum is far away: not what is asked here.
    monkeypatch.setattr("crate_mae.evaluation.regression.MAX_STEPS", 20)
    run = masked_run(kind="random", ratio=0.5)
    run.config["data"]["limit"] = 60
    complete_run(run, test_limit=30)
    found = json.loads((run.folder / "evaluation.json").read_text())
    assert found["limit"] == 60
    assert {(row["num_train"], row["num_test"]) for row in found["rows"]} == {(60, 30)}
    printed = next(line for line in measuring_commands(run) if " probe " in line)
    target = run.folder / "probe.json"
    assert main([*shlex.split(printed)[1:], "--device", "cpu", "--json", str(target)]) == 0
    again = {row["subject"]: row["accuracy"] for row in json.loads(target.read_text())["rows"]}
    assert again == {
        row["subject"]: row["accuracy"] for row in found["rows"] if row["method"] == "probe"
    }
    monkeypatch.setattr(measure, "_evaluate", lambda *_: pytest.fail("measured again"))
    complete_run(run, limit=1000)
    complete_run(run, limit=60)
    assert run.problems == read_run(run.folder).problems
