"""Training with images on the device; what is marked runs where there is an NVIDIA GPU alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_cases import gap, golden, golden_model
from training_runs import (
    AUGMENT,
    assert_same_run,
    final_state,
    records,
    small_config,
    small_finetune,
)

from crate_mae.training.config import TrainerConfig
from crate_mae.training.finetune import finetune
from crate_mae.training.pretrain import pretrain

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ACCELERATORS = ["cpu", pytest.param("gpu", marks=needs_gpu)]


def _trainer(accelerator: str, **more: object) -> TrainerConfig:
    return TrainerConfig(accelerator=accelerator, devices=1, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_a_run_with_images_on_the_device_resumes_exactly(accelerator: str, tmp_path: Path) -> None:
    config = small_config()
    config = replace(
        config,
        data=replace(config.data, on_device=True),
        trainer=_trainer(accelerator, deterministic=accelerator == "gpu"),
    )
    assert pretrain(config, tmp_path / "whole").finished
    assert not pretrain(config, tmp_path / "parts", stop_after=7).finished
    assert pretrain(config, tmp_path / "parts", resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_a_classifier_trains_with_images_on_the_device(accelerator: str, tmp_path: Path) -> None:
    config = small_finetune()
    augment = replace(AUGMENT, rand_augment=0, erasing=0.0, mixup=0.2, cutmix=0.2)
    config = replace(
        config,
        data=replace(config.data, on_device=True, augment=augment),
        optim=replace(config.optim, epochs=12, base_lr=4e-2, ema=None, drop_path=0.2),
        trainer=_trainer(accelerator),
    )
    summary = finetune(config, tmp_path / "run")
    assert summary.finished
    losses = [line["val/loss"] for line in records(tmp_path / "run") if "val/loss" in line]
    assert losses[-1] < losses[0] - 0.05


def test_images_on_the_device_and_rounding_are_another_run(tmp_path: Path) -> None:
    config, folder = small_config(), tmp_path / "run"
    assert not pretrain(config, folder, stop_after=7).finished
    other = replace(config, data=replace(config.data, on_device=True))
    with pytest.raises(ValueError, match=r"data\.on_device: False -> True"):
        pretrain(other, folder, resume=True)
    with pytest.raises(ValueError, match=r"trainer\.tf32: False -> True"):
        pretrain(replace(config, trainer=replace(config.trainer, tf32=True)), folder, resume=True)
    assert pretrain(config, folder, resume=True).finished
    assert pretrain(config, tmp_path / "whole").finished
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.parametrize("tf32", [False, True])
def test_products_may_round_to_tf32_within_a_run_alone(
    tf32: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, closure: object = None) -> object:
        seen.append(torch.get_float32_matmul_precision())
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    before = torch.get_float32_matmul_precision()
    assert pretrain(small_config(trainer=_trainer("cpu", tf32=tf32)), tmp_path / "run").finished
    assert set(seen) == {"high" if tf32 else "highest"}
    assert torch.get_float32_matmul_precision() == before


@needs_gpu
def test_the_model_on_a_gpu_is_the_published_one() -> None:
    """In float64; float32 and bf16 are held to it, as far as their rounding goes."""
    images, mask = golden()["images"], golden()["mask"]
    exact = golden_model().double().cuda()(images.double().cuda(), mask.cuda())
    assert gap(exact.prediction.cpu(), golden()["masked.pred"]) <= 1e-5
    assert gap(exact.loss.cpu(), golden()["loss"][0]) <= 1e-5
    model = golden_model().cuda()
    single = model(images.cuda(), mask.cuda())
    assert gap(single.prediction.double(), exact.prediction) <= 1e-3
    assert float(single.loss) == pytest.approx(float(exact.loss), rel=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        rough = model(images.cuda(), mask.cuda())
    assert float(rough.loss) == pytest.approx(float(exact.loss), rel=1e-2)


@needs_gpu
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from inside torch.compile
@pytest.mark.parametrize(
    ("trainer", "tolerance"),
    [
        ({}, 1e-4),
        ({"tf32": True}, 1e-2),
        ({"precision": "bf16-mixed"}, 2e-2),
        ({"compile": True}, 1e-4),
        ({"recompute": True}, 1e-4),
    ],
)
def test_a_gpu_run_has_the_losses_of_a_cpu_run(
    trainer: dict[str, object], tolerance: float, tmp_path: Path
) -> None:
    config = small_config()
    config = replace(config, data=replace(config.data, on_device=True))
    assert pretrain(config, tmp_path / "cpu").finished
    assert pretrain(replace(config, trainer=_trainer("gpu", **trainer)), tmp_path / "gpu").finished
    expected, found = (
        [line["train/loss"] for line in records(tmp_path / name) if "train/loss" in line]
        for name in ("cpu", "gpu")
    )
    assert found == pytest.approx(expected, rel=tolerance)
    assert final_state(tmp_path / "gpu").keys() == final_state(tmp_path / "cpu").keys()
