"""What a run leaves behind, refuses, and does when numbers break."""

import csv
import json
import logging
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_cases import MODEL
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from training_runs import final_state, records, small_config

from crate_mae import load_model
from crate_mae.batches.broken import TooManyBrokenImagesError
from crate_mae.batches.config import Augment, DataConfig, Masking
from crate_mae.models.autoencoder import CrateMAE, build_model
from crate_mae.models.patches import patchify
from crate_mae.training.callbacks import StopSignals
from crate_mae.training.config import OptimConfig, RecordConfig, TrainerConfig
from crate_mae.training.metrics_log import read_metrics
from crate_mae.training.nonfinite import NonFiniteError, locate_nonfinite
from crate_mae.training.objectives import ObjectiveConfig
from crate_mae.training.pretrain import pretrain
from crate_mae.training.run_folder import changed_keys, continuing, load_config_values
from crate_mae.training.session import batch_per_device
from crate_mae.weights.weights_folder import load_autoencoder, save_model

# 35 validation images in batches of 32: the last batch must count for 3, not for half.
UNEVEN = replace(small_config().data, limit=215, val_share=35 / 215)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(
        record=RecordConfig(log_every=1, checkpoint_epochs=2, reconstruct_epochs=2)
    )
    config = replace(config, data=UNEVEN)
    folder = tmp_path_factory.mktemp("run") / "run"
    assert pretrain(config, folder, command=["crate-mae", "pretrain", "x"]).finished
    return folder


def test_the_run_folder_tells_everything(run: Path) -> None:
    names = {item.name for item in run.iterdir()}
    assert names >= {
        "config.yaml", "command.txt", "environment.json", "data.json", "metrics.csv",
        "metrics.jsonl", "log.txt", "tensorboard", "checkpoints", "weights", "weights-best",
        "reconstructions", "summary.json",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(".")], "no leftovers"
    assert (run / "command.txt").read_text() == "crate-mae pretrain x\n"
    assert load_config_values(run)["model"]["dim"] == MODEL.dim
    data = json.loads((run / "data.json").read_text())
    assert data["images"] == 180
    assert data["validation_images"] == 35
    assert len(data["fingerprint"]) == 64
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["packages"]["torch"]
    assert {p.name for p in (run / "checkpoints").iterdir()} == {
        "last.ckpt", "best.ckpt", "epoch-0002.ckpt",
    }  # fmt: skip
    assert [p.name for p in sorted((run / "reconstructions").iterdir())] == [
        "epoch-0002.png", "epoch-0003.png",
    ]  # fmt: skip
    with Image.open(run / "reconstructions" / "epoch-0003.png") as picture:
        assert picture.size[0] > 200
    assert "optimiser steps in all is very few" in (run / "log.txt").read_text()


def test_csv_and_jsonl_hold_the_same_numbers(run: Path) -> None:
    lines = read_metrics(run)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines) == 18  # 15 steps and 3 validations
    for row, line in zip(rows, lines, strict=True):
        assert {key: float(value) for key, value in row.items() if value != ""} == line


def test_weights_rebuild_the_trained_model_alone(run: Path) -> None:
    model = load_model(run)
    trained = final_state(run)
    assert model.config == MODEL
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained[f"model.{key}"])
    assert model.preprocess.channels == 1
    assert 0.2 < model.preprocess.mean[0] < 0.4


def test_validation_numbers_against_loops(run: Path) -> None:
    """Loss, one-colour and patch-mean baselines, computed again from the definition."""
    from crate_mae.batches.data_module import ImageDataModule
    from crate_mae.batches.masked import MaskedBatches

    config = small_config(data=UNEVEN)
    data = ImageDataModule(
        config.data,
        model=config.model,
        kind=MaskedBatches(masking=config.masking),
        batch_size=32,
        seed=config.seed,
    )
    data.open()
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    model = load_autoencoder(run)
    errors, values, within = [], [], []
    for batch in loader:
        with torch.no_grad():
            prediction = model(batch["images"], mask=batch["mask"]).prediction
        target = patchify(batch["images"], (2, 2)).double()
        for image in range(len(target)):
            for patch in range(target.shape[1]):
                if batch["mask"][image, patch]:
                    true = target[image, patch]
                    errors.append(((prediction[image, patch].double() - true) ** 2).mean().item())
                    values.append(true)
                    within.append(((true - true.mean()) ** 2).mean().item())
    last = [record for record in records(run) if "val/loss" in record][-1]
    assert last["val/loss"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert last["val/patch_mean"] == pytest.approx(np.mean(within), rel=1e-5)
    everything = torch.stack(values)
    assert last["val/mean_colour"] == pytest.approx(
        ((everything - everything.mean()) ** 2).mean().item(), rel=1e-5
    )


def test_a_taken_folder_is_refused_and_left_alone(run: Path, tmp_path: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        pretrain(small_config(), run)
    assert (run / "metrics.jsonl").read_bytes() == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--out"):
        pretrain(small_config(), mine)
    assert [item.name for item in mine.iterdir()] == ["notes.txt"]


def test_init_from_starts_a_new_run_with_old_weights(run: Path, tmp_path: Path) -> None:
    config = small_config(
        optim=OptimConfig(epochs=1, batch_size=32, base_lr=1e-12, warmup_epochs=0)
    )
    pretrain(config, tmp_path / "new", init_from=run)
    old, new = load_autoencoder(run).state_dict(), load_autoencoder(tmp_path / "new").state_dict()
    for key, value in old.items():
        torch.testing.assert_close(new[key], value, atol=1e-6, rtol=1e-6)
    assert records(tmp_path / "new")[0]["step"] == 0
    other = small_config(model=replace(MODEL, dim=32))
    with pytest.raises(ValueError, match=r"model\.dim: 16 -> 32.*Only model\.image_size"):
        pretrain(other, tmp_path / "other", init_from=run)
    assert not (tmp_path / "other").exists()


def test_a_node_number_of_the_cluster_does_not_make_a_lone_run_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that numbers its nodes, and a run of one process on the second of them."""
    monkeypatch.setenv("NODE_RANK", "1")
    pretrain(small_config(), tmp_path / "run", stop_after=2)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "data.json", "command.txt", "log.txt", "metrics.jsonl"} <= written
    with pytest.raises(FileExistsError, match="never overwritten"):
        pretrain(small_config(), tmp_path / "run")


def test_runs_that_knew_fewer_settings_go_on(tmp_path: Path) -> None:
    """Settings that came later had their defaults; another value of one makes another run."""
    folder = tmp_path / "run"
    pretrain(small_config(), folder, stop_after=2)
    values = load_config_values(folder)
    del values["method"], values["objective"], values["masking"]["square"]
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    other = small_config(masking=Masking(square=2))
    with pytest.raises(ValueError, match=r"another run: masking.square: 1 -> 2"):
        pretrain(other, folder, resume=True)
    assert pretrain(small_config(), folder, resume=True).finished
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "x"}))
    with pytest.raises(ValueError, match="damaged: it lacks seed, model"):
        pretrain(small_config(), folder, resume=True)


@pytest.mark.parametrize("source", ["torchvision:CIFAR10", "hf:owner/name"])
def test_only_lost_paths_are_explained_as_lost_paths(source: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(FileNotFoundError) as told, continuing(tmp_path, source):
        raise FileNotFoundError("no weights here")
    assert str(told.value) == "no weights here"
    lost = pytest.raises(FileNotFoundError, match=r"--data\.source npy:/WHOLE/PATH")
    with lost, continuing(tmp_path, "npy:pictures.npy"):
        raise FileNotFoundError("no pictures.npy")


def test_resume_and_init_from_cannot_be_mixed(run: Path) -> None:
    with pytest.raises(ValueError, match="init-from"):
        pretrain(small_config(), run, resume=True, init_from=run)


def test_settings_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few = small_config(
        data=DataConfig(source="digits", limit=3, val_share=0.0),
        trainer=TrainerConfig(accelerator="cpu", devices=1, accumulate=4),
    )
    with pytest.raises(
        ValueError, match=r"3 training images are fewer than .* of 32; use more.*accumulate"
    ):
        pretrain(few, folder)
    with pytest.raises(ValueError, match="nearest 30"):
        pretrain(
            small_config(trainer=TrainerConfig(accelerator="cpu", devices=1, accumulate=3)), folder
        )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pretrain(small_config(data=DataConfig(source="imagefolder:nowhere")), folder)
    large = small_config(model=replace(MODEL, image_size=32, patch_size=16))
    with pytest.raises(ValueError, match="smaller than a 16x16 patch"):
        pretrain(large, folder)
    assert not folder.exists()


def test_batch_is_shared_by_devices_and_accumulation() -> None:
    config = small_config(trainer=TrainerConfig(accumulate=2))
    assert batch_per_device(config, 4) == 4
    with pytest.raises(ValueError, match="3 devices x 2 accumulation steps; nearest 30"):
        batch_per_device(config, 3)


def test_a_ratio_range_needs_mask_tokens_in_the_encoder(tmp_path: Path) -> None:
    masking = Masking(ratio=0.5, ratio_max=0.9)
    with pytest.raises(ValueError, match="visible-only"):
        small_config(masking=masking, model=replace(MODEL, mask_tokens="decoder"))
    assert pretrain(small_config(masking=masking), tmp_path / "run", stop_after=2).step == 2


def test_a_ratio_for_each_step_and_squares_train_visible_only_exactly(tmp_path: Path) -> None:
    """Split into two batches a step, and stopped in between: the same ratios, the same model."""
    config = small_config(
        masking=Masking(ratio=0.25, ratio_max=0.7, ratio_per="step", square=2),
        model=replace(MODEL, mask_tokens="decoder"),
        trainer=TrainerConfig(accelerator="cpu", devices=1, accumulate=2),
    )
    pretrain(config, tmp_path / "whole")
    pretrain(config, tmp_path / "parts", stop_after=4)
    pretrain(config, tmp_path / "parts", resume=True)
    whole = replace(config, trainer=replace(config.trainer, accumulate=1))
    pretrain(whole, tmp_path / "one")
    first = final_state(tmp_path / "whole")
    for key, value in final_state(tmp_path / "parts").items():
        assert torch.equal(value, first[key])
    for key, value in final_state(tmp_path / "one").items():
        torch.testing.assert_close(value, first[key], atol=2e-3, rtol=2e-3)


def test_visible_only_encoding_and_normalised_targets_train(tmp_path: Path) -> None:
    model = replace(MODEL, mask_tokens="decoder", norm_pix_loss=True, output_projection="tied")
    assert pretrain(small_config(model=model), tmp_path / "run").finished
    first, *_, last = [record for record in records(tmp_path / "run") if "val/loss" in record]
    # A normalised patch of n = 4 values has mean square (n - 1) / n, a flat one 0.
    assert 0.4 < last["val/patch_mean"] <= 0.75
    assert last["val/loss"] < 0.9 * first["val/loss"]


def test_bf16_trains(tmp_path: Path) -> None:
    config = small_config(
        trainer=TrainerConfig(accelerator="cpu", devices=1, precision="bf16-mixed")
    )
    assert pretrain(config, tmp_path / "run").finished
    losses = [r["train/loss"] for r in records(tmp_path / "run") if "train/loss" in r]
    assert losses[-1] < losses[0]


class FloatImages(Dataset[Tensor]):
    """Images of a value that grows without bound at one index."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Tensor:
        value = 3e38 if index == 40 else 0.5
        return torch.full((1, 8, 8), value) * torch.linspace(0.1, 1, 64).view(1, 8, 8)


def test_a_python_dataset_trains_and_overflow_is_located(tmp_path: Path) -> None:
    config = small_config(
        data=DataConfig(mean=[0.0], std=[0.1], val_share=0, augment=Augment(kind="none")),
        record=RecordConfig(log_every=1, checkpoint_steps=1, reconstruct_epochs=0),
    )
    with pytest.raises(NonFiniteError) as caught:
        pretrain(config, tmp_path / "run", dataset=FloatImages())
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert report == caught.value.report
    assert report["began_in"] == "input images"
    assert len(report["samples"]) == 32
    assert any("40" in name for name in report["samples"])
    message = str(caught.value)
    assert f"step {report['step']}" in message
    assert "seed 0" in message
    assert "base_lr" in message


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_an_exploding_learning_rate_names_where_it_began(tmp_path: Path, gamma: float) -> None:
    config = small_config(
        optim=OptimConfig(epochs=3, batch_size=32, base_lr=1e38, warmup_epochs=0),
        objective=ObjectiveConfig(gamma=gamma),
        record=RecordConfig(log_every=1, checkpoint_steps=1, reconstruct_epochs=0),
    )
    with pytest.raises(NonFiniteError) as caught:
        pretrain(config, tmp_path / "run")
    assert caught.value.report["began_in"] != "not found"
    assert caught.value.report["checkpoint"].endswith("last.ckpt")


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("encoder.patch_embed.weight", "patch embedding"),
        ("encoder.layers.1.mssa.output.weight", "encoder layer 1, compress"),
        ("encoder.layers.0.ista.dictionary", "encoder layer 0, sparsify"),
        ("decoder.1.synthesis.weight", "decoder layer 1, expand"),
        ("decoder.0.mssa.output.weight", "decoder layer 0, decompress"),
        ("prediction.weight", "prediction"),
    ],
)
def test_overflow_is_located_by_half_step(part: str, where: str) -> None:
    model = build_model("debug")
    parameter = dict(model.named_parameters())[part]
    with torch.no_grad():
        parameter.copy_(torch.sign(parameter) * 3e38)
    images = torch.randn(2, 3, 32, 32) * 10
    mask = torch.arange(16).expand(2, -1) % 2 == 0
    assert locate_nonfinite(model, images, model.tensors_to_loss(images, mask)) == where


def test_a_parameter_that_is_already_broken_is_named() -> None:
    model = build_model("debug")
    with torch.no_grad():
        model.mask_token[0, 0, 3] = torch.nan
    mask = torch.ones(1, 16, dtype=torch.bool)
    images, whole = torch.zeros(1, 3, 32, 32), build_model("debug")
    found = locate_nonfinite(model, images, model.tensors_to_loss(images, mask))
    assert found == "parameter mask_token"
    assert locate_nonfinite(whole, images, whole.tensors_to_loss(images, mask)) == "not found"


def folder_of_images(folder: Path, *, good: int, broken: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(good):
        pixels = generator.integers(0, 256, (10, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"good{index:03d}.png")
    for index in range(broken):
        (folder / f"broken{index}.png").write_bytes(b"\x89PNG not really")
    return folder


@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_broken_images_are_named_and_too_many_stop_the_run(tmp_path: Path, cache: float) -> None:
    images = folder_of_images(tmp_path / "images", good=97, broken=3)
    source = DataConfig(
        source=f"imagefolder:{images}", val_share=0, workers=0, cache_gib=cache, max_broken=0.05
    )
    pretrain(small_config(data=source), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    facts = (tmp_path / "run" / "data.json").read_text()
    for index in range(3):
        assert f"broken{index}.png" in log + facts
    named = json.loads(facts)["unreadable"]
    assert {Path(name).name for name in named} == {f"broken{index}.png" for index in range(3)}
    strict = replace(source, max_broken=0.01)
    with pytest.raises(TooManyBrokenImagesError, match=r"(?s)of \d+ images.*broken\d\.png"):
        pretrain(small_config(data=strict), tmp_path / "strict")


def test_broken_validation_images_are_named_too(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images", good=40, broken=0)
    held = folder_of_images(tmp_path / "held", good=10, broken=2)
    source = DataConfig(
        source=f"imagefolder:{images}",
        val_source=f"imagefolder:{held}",
        workers=0,
        cache_gib=0,
        max_broken=0.5,
    )
    pretrain(small_config(data=source), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "broken0.png" in log
    assert "broken1.png" in log


def test_starting_weights_must_compute_the_same(run: Path, tmp_path: Path) -> None:
    for change, named in (
        ({"num_heads": 4}, "num_heads: 2 -> 4"),
        ({"step_size": 0.9}, "step_size"),
        ({"mask_tokens": "decoder"}, "mask_tokens"),
    ):
        other = small_config(model=replace(MODEL, **change))
        with pytest.raises(ValueError, match=named):
            pretrain(other, tmp_path / "run", init_from=run)
    larger = small_config(
        model=replace(MODEL, image_size=(8, 12), norm_pix_loss=True),
        data=DataConfig(source="digits", limit=100),
    )
    assert pretrain(larger, tmp_path / "larger", init_from=run, stop_after=1).step == 1
    assert "norm_pix_loss" in (tmp_path / "larger" / "config.yaml").read_text()


def test_hardware_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has what the test asks for in vain")
    for trainer in (TrainerConfig(accelerator="gpu"), TrainerConfig(devices="two")):
        with pytest.raises(ValueError, match="do not fit this machine"):
            pretrain(small_config(trainer=trainer), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_stops_after_the_batch_and_handlers_come_back(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    number = getattr(signal, name)
    # Whoever started the tests may have had the signal ignored, as nohup does.
    outside = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, outside))
    before = signal.getsignal(number)

    armed = True

    class Signalling(FloatImages):
        def __getitem__(self, index: int) -> Tensor:
            if (
                armed and index == 5 and (tmp_path / "run" / "config.yaml").exists()
            ):  # the run has begun
                os.kill(os.getpid(), number)
            return torch.rand(1, 8, 8)

    config = small_config(
        data=DataConfig(mean=[0.0], std=[0.1], val_share=0, cache_gib=0, workers=0)
    )
    summary = pretrain(config, tmp_path / "run", dataset=Signalling())
    assert not summary.finished
    assert 0 < summary.step < 6
    assert signal.getsignal(number) is before
    assert not list(tmp_path.glob("*hpc*"))
    armed = False
    assert pretrain(config, tmp_path / "run", resume=True, dataset=Signalling()).finished


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    outside = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not stop.wanted
    finally:
        signal.signal(signal.SIGUSR1, outside)


def test_changed_settings_are_listed() -> None:
    old = {"a": 1, "b": {"c": 2, "d": [1]}}
    new = {"a": 1, "b": {"c": 3, "d": [1]}, "e": 4}
    assert changed_keys(old, new) == ["b.c: 2 -> 3", "e: None -> 4"]


def test_warnings_of_the_package_reach_the_log(run: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="crate_mae"):
        logging.getLogger("crate_mae").info("after the run")
    assert "after the run" not in (run / "log.txt").read_text()


def test_save_model_and_training_weights_are_the_same_format(tmp_path: Path) -> None:
    model = CrateMAE(MODEL)
    save_model(model, tmp_path / "weights")
    config = small_config(optim=OptimConfig(epochs=1, batch_size=32, warmup_epochs=0))
    assert pretrain(config, tmp_path / "run", init_from=tmp_path / "weights").finished


def test_a_stream_of_shards_trains_and_resumes_exactly(tmp_path: Path) -> None:
    import io

    import webdataset as wds

    generator = np.random.default_rng(0)
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f"shard-{shard:04d}.tar")) as tar:
            for index in range(48):
                buffer = io.BytesIO()
                pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(buffer, "PNG")
                tar.write({"__key__": f"{shard}-{index:03d}", "png": buffer.getvalue()})
    stream = DataConfig(
        source=f"wds:{tmp_path}/shard-{{0000..0001}}.tar",
        val_source="digits",
        val_limit=40,
        mean=[0.5],
        std=[0.3],
        workers=2,
        augment=Augment(kind="pad_crop", padding=1),
    )
    config = small_config(data=stream)
    assert pretrain(config, tmp_path / "whole").step == 9
    assert not pretrain(config, tmp_path / "parts", stop_after=4).finished
    assert pretrain(config, tmp_path / "parts", resume=True).finished
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_compiled_training_gives_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = small_config(optim=OptimConfig(epochs=1, batch_size=32, warmup_epochs=0))
    compiled = replace(eager, trainer=TrainerConfig(accelerator="cpu", devices=1, compile=True))
    # The default backend compiles C++ for minutes; tracing and autograd are the same in this one.
    backend = partial(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(CrateMAE, "compile", lambda model: backend(model))
    for name, config in (("eager", eager), ("compiled", compiled)):
        assert pretrain(config, tmp_path / name).finished
    for first, second in zip(
        records(tmp_path / "eager"), records(tmp_path / "compiled"), strict=True
    ):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert second[key] == pytest.approx(value, rel=1e-3, abs=1e-5)
    keys = final_state(tmp_path / "eager").keys()
    assert final_state(tmp_path / "compiled").keys() == keys
