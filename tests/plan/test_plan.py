"""Plans of runs: arithmetic by hand, measurements that are put in, real steps, and refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crate_mae import build_model, save_model
from crate_mae.cli import main
from crate_mae.common.peak_memory import OutOfMemoryError, PeakMemory
from crate_mae.models.cost import counted_flops, parameter_count
from crate_mae.plan import machine as machines
from crate_mae.plan.amounts import (
    accumulation,
    disk_use,
    exchanged_bytes,
    memory_line,
    schedule,
    training_state,
)
from crate_mae.plan.machine import Hardware, Machine, asked_hardware
from crate_mae.plan.plan import RunPlan, plan_run
from crate_mae.plan.plan_text import plan_text
from crate_mae.plan.probe_step import Measure, probe_step
from crate_mae.plan.real_step import PlannedRun, make_step, planned_run
from crate_mae.plan.recipe import count_images, is_supervised, parse_recipe
from crate_mae.training.config import CheckpointConfig, OptimConfig, PretrainConfig, TrainerConfig
from crate_mae.training.parse import recipe
from crate_mae.training.pretrain import pretrain

GIB = 2**30


def measured_as(
    *, base: float, per_image: float, seconds: float, most: int = 10**9
) -> Callable[..., Measure]:
    """Measurements of a made-up machine: bytes and seconds in proportion to the images."""

    def measure(images: int, _: int, steps: int) -> PeakMemory:
        if images > most:
            raise OutOfMemoryError("no more")
        peak = int(base + per_image * images)
        return PeakMemory(
            peak=peak, loaded=int(base), settled=int(base), seconds=(seconds * images,) * steps,
            method="made up",
        )  # fmt: skip

    return lambda *_: measure


def planned(name: str = "digits", *words: str, images: int = 6400, **options: object) -> RunPlan:
    """A plan of a recipe on the made-up machine."""
    made_up = measured_as(base=GIB, per_image=GIB / 64, seconds=0.01)
    settings = {"measurement": made_up, **options}
    return plan_run(parse_recipe(name, words), images=images, **settings)  # type: ignore[arg-type]


# -- arithmetic -------------------------------------------------------------------------------


def test_steps_by_hand() -> None:
    found = schedule(1_281_167, OptimConfig(epochs=800, batch_size=4096))
    assert (found.steps_per_epoch, found.steps, found.samples) == (312, 249_600, 1_022_361_600)
    with pytest.raises(ValueError, match="fewer than one batch of 256"):
        schedule(255, OptimConfig(batch_size=256))


def test_state_and_disk_by_hand() -> None:
    state = training_state(1000, average=True)
    assert (state.weights, state.gradients, state.moments, state.average) == (
        4000, 4000, 8000, 4000,
    )  # fmt: skip
    assert state.total == 20_000
    assert training_state(1001, shards=4).weights == 251 * 4
    half = training_state(1000, frozen=500, average=True)
    assert (half.weights, half.gradients, half.moments, half.average) == (6000, 4000, 8000, 6000)
    disk = disk_use(
        1000, record=CheckpointConfig(checkpoint_epochs=4), epochs=10, validated=True, average=False
    )
    assert (disk.checkpoint, disk.checkpoints, disk.weights, disk.folders) == (12_000, 4, 4000, 2)
    assert disk.total == 5 * 12_000 + 2 * 4000


@given(st.integers(1, 512), st.integers(1, 16), st.integers(0, 600))
def test_accumulation_is_the_fewest_that_fit(each: int, devices: int, largest: int) -> None:
    found = accumulation(each * devices, devices=devices, largest=largest)
    fitting = [n for n in range(1, each + 1) if each % n == 0 and each // n <= largest]
    assert found == (fitting[0] if fitting else None)


def test_a_batch_that_cannot_be_shared_has_no_accumulation() -> None:
    assert accumulation(10, devices=3, largest=100) is None


def test_the_memory_line() -> None:
    line = memory_line([(1, 110), (3, 130), (5, 150)])
    assert (line.fixed, line.per_image, line.at(100)) == (100, 10, 1100)
    assert line.largest(1000) == 80  # 0.9 x 1000 = 900 bytes, 100 of them fixed
    assert line.largest(50) == 0
    for bad in ([(1, 5)], [(2, 5), (2, 6)], [(1, 5), (2, 5)]):
        with pytest.raises(ValueError, match=r"line needs|did not grow"):
            memory_line(bad)


# -- measuring, with a made-up machine ----------------------------------------------------------


def test_the_recipes_batch_is_measured_when_it_can_be() -> None:
    measure = measured_as(base=100, per_image=10, seconds=0.001)()
    probe = probe_step(measure, images=64, flops=lambda n: n, free=10_000)
    assert [point.images for point in probe.points] == [4, 64]
    assert probe.points[-1].seconds == pytest.approx(0.064)


@pytest.mark.parametrize(("free", "seconds"), [(1000, 1e9), (None, 0.3)])
def test_smaller_batches_where_memory_or_time_are_short(free: int | None, seconds: float) -> None:
    measure = measured_as(base=100, per_image=10, seconds=0.001)()
    probe = probe_step(measure, images=1024, flops=lambda n: n, free=free, seconds=seconds)
    largest = probe.points[-1].images
    assert largest < 1024
    if free is not None:
        assert probe.points[-1].peak <= 0.9 * free
    else:
        assert 2 * 0.001 * largest <= seconds
    assert [point.images for point in probe.points] == sorted({p.images for p in probe.points})


def test_running_out_of_memory_or_time_is_reported() -> None:
    none = measured_as(base=100, per_image=10, seconds=0.001, most=0)()
    assert probe_step(none, images=64, flops=lambda n: n, free=None).out_of_memory == 4
    some = measured_as(base=100, per_image=10, seconds=0.001, most=10)()
    probe = probe_step(some, images=64, flops=lambda n: n, free=None)
    assert (len(probe.points), probe.out_of_memory) == (1, 64)

    def hangs(*_: int) -> PeakMemory:
        raise TimeoutError

    assert probe_step(hangs, images=64, flops=lambda n: n, free=None).too_slow == 4


def test_twice_the_batch_is_twice_the_step_and_as_long_a_run() -> None:
    one, two = planned(), planned("digits", "--optim.batch_size", "128")
    assert one.measured is not None
    assert two.measured is not None
    assert one.measured.step_seconds == pytest.approx(0.64)
    assert two.measured.step_seconds == pytest.approx(1.28)
    assert one.hours == pytest.approx(0.64 * 100 * 180 / 3600)
    assert two.hours == pytest.approx(one.hours)
    assert 1.9 < two.flops / one.flops < 2
    assert (one.measured.peak, two.measured.peak) == (2 * GIB, 3 * GIB)


def test_accumulating_computes_the_same_in_parts() -> None:
    whole, parts = planned(), planned("digits", "--trainer.accumulate", "4")
    assert parts.per_device == 16
    assert parts.schedule == whole.schedule
    assert parts.hours == pytest.approx(whole.hours)
    assert parts.measured is not None
    assert parts.measured.peak == GIB * 5 // 4


def test_a_batch_too_large_comes_with_the_accumulation_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machines, "free_memory", lambda _: 2 * GIB)  # room for 51 images
    found = planned("digits", "--optim.batch_size", "256")
    assert found.measured is not None
    assert (found.measured.largest, found.measured.accumulate) == (51, 8)
    text = " ".join(plan_text(found).split())
    assert "does not fit on this machine, where about 51 images at a time do" in text
    assert "--trainer.accumulate 8 keeps the batch of 256" in text


def test_processes_share_the_cores_and_memory_of_their_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machines, "free_memory", lambda _: 6 * GIB)
    words = ("--trainer.accelerator", "cpu", "--trainer.devices")
    one, four = (planned("digits", *words, count, tflops=0.1) for count in ("1", "4"))
    assert four.here
    assert four.per_device == 16
    assert four.hours == pytest.approx(one.hours)  # the same work on the same cores
    work = four.flops * four.schedule.steps
    assert four.hours_at_rate == pytest.approx(work / 0.1e12 / 3600)  # one CPU's rate
    assert one.measured is not None
    assert four.measured is not None
    assert (one.measured.largest, four.measured.largest) == (281, 22)  # 0.9 x 6 / 4 - 1 GiB
    text = " ".join(plan_text(four).split())
    assert "asked for 4 CPU processes: 16 images at a time on each" in text
    assert "fits on this machine: about 22 images at a time do" in text
    assert "free 1.5 GiB that each of 4 processes has" in text
    assert "as its 4 processes share the cores" in text
    tight = planned("digits", *words, "8")
    assert "does not fit on this machine" in " ".join(plan_text(tight).split())
    clusters = planned("digits", *words, "2", "--trainer.num_nodes", "2", tflops=0.1)
    assert clusters.hours_at_rate == pytest.approx(four.hours_at_rate / 2)  # type: ignore[operator]


def test_room_far_beyond_what_was_measured_is_not_told_in_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for free, told in ((11 * GIB, "about 570 images"), (800 * GIB, "more than 1,024 images")):
        monkeypatch.setattr(machines, "free_memory", lambda _, free=free: free)
        assert f"fits on this machine: {told} at a time" in " ".join(plan_text(planned()).split())


def test_a_cluster_is_reckoned_by_a_given_rate() -> None:
    found = planned("imagenet1k", images=1_281_167, tflops=100.0, measure=False)
    assert (found.asked.world, found.per_device) == (16, 256)
    assert found.hours_at_rate == pytest.approx(
        found.flops * 249_600 / (100e12 * 16 * 3600), rel=1e-12
    )
    assert found.hours_at_rate is not None
    assert 10 < found.hours_at_rate < 12  # as the header of the recipe reckons by hand
    assert not found.here
    # Where it is measured, on a model that is counted faster.
    small = ["--model.depth", "1", "--model.decoder_depth", "1", "--model.dim", "96"]
    found = planned("imagenet1k", *small, images=1_281_167, tflops=100.0)
    assert found.measured is not None
    assert found.hours == pytest.approx(found.measured.step_seconds * 16 * 249_600 / 3600)  # type: ignore[operator]
    text = " ".join(plan_text(found).split())
    assert "asked for 16 GPUs on 2 nodes: 256 images at a time on each; bf16-mixed" in text
    assert "at 100 TFLOP/s achieved by each of 16 devices" in text


# -- what is trained ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits", ()),
        ("digits", ("--model.mask_tokens", "decoder")),
        ("digits", ("--trainer.recompute", "true")),
        ("digits", ("--objective.gamma", "0.1")),
        ("digits", ("--objective.gamma", "0.1", "--trainer.accumulate", "2")),
        ("digits", ("--objective.gamma", "0.1", "--objective.features", "tokens")),
        ("finetune-cifar10-small", ("--from-scratch", "debug")),
        ("finetune-cifar10-small", ("--from-scratch", "debug", "--trainer.recompute", "true")),
        (
            "finetune-mae",
            ("--from-scratch", "debug", "--optim.ema", "0.9", "--trainer.accumulate", "2"),
        ),
    ],
)
def test_operations_and_parameters_are_those_of_a_real_step(
    name: str, words: tuple[str, ...]
) -> None:
    subject = replace(planned_run(parse_recipe(name, words)), classes=7)
    module, batch = subject.module(), subject.batch(3)
    real = counted_flops(lambda: torch.autograd.backward(module.loss(batch)))
    assert subject.flops(3) == real
    assert subject.parameters() == parameter_count(module.model)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ["digits", "finetune-mae"])
def test_the_step_trains_every_weight(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--from-scratch", "debug", "--optim.ema", "0.9"] if name != "digits" else []
    subject = replace(planned_run(parse_recipe(name, words)), classes=3)
    module = subject.module()
    monkeypatch.setattr(PlannedRun, "module", lambda _: module)
    before = [p.detach().clone() for p in module.model.parameters()]
    make_step(subject, 2, "cpu", precision)()
    after = list(module.model.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_tokens() -> None:
    assert planned_run(parse_recipe("cifar10")).tokens == (65, 65)
    visible = parse_recipe("cifar10", ["--model.mask_tokens", "decoder"])
    assert planned_run(visible).tokens == (17, 65)
    larger = parse_recipe("finetune-pets", ["--from-scratch", "base", "--image_size", "[224, 112]"])
    assert planned_run(larger).tokens == (99, None)


def test_weights_bring_their_architecture_and_size(tmp_path: Path) -> None:
    model = build_model("debug")
    save_model(model, tmp_path / "weights")
    words = ["--weights", str(tmp_path / "weights")]
    subject = planned_run(parse_recipe("finetune-cifar10-small", words))
    assert subject.model == model.config
    assert subject.image_hw == (32, 32)
    subject = planned_run(parse_recipe("finetune-cifar10-small", [*words, "--image_size", "64"]))
    assert (subject.image_hw, subject.tokens) == ((64, 64), (65, None))


def test_which_recipes_are_supervised() -> None:
    for path in recipe("digits").parent.glob("*.yaml"):
        assert isinstance(parse_recipe(str(path), _arch(path)), PretrainConfig) != (
            path.stem.startswith("finetune-")
        )
    assert is_supervised({"data": {"shots": 5}})
    assert is_supervised({}, ["--optim.layer_decay=0.7"])
    assert not is_supervised({"optim": {"epochs": 3}}, ["--data.source", "digits"])


def _arch(path: Path) -> list[str]:
    return ["--from-scratch", "debug"] if path.stem.startswith("finetune-") else []


# -- images, machine ----------------------------------------------------------------------------


def test_images_are_counted_as_the_run_counts_them(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    for index in range(12):
        write(f"pictures/{'ab'[index % 2]}/{index}.png", (20, 20))
    words = ["--data.source", f"imagefolder:{tmp_path / 'pictures'}"]
    assert count_images(parse_recipe("own-images", words)).count == 11  # a tenth is held out
    limited = parse_recipe("own-images", [*words, "--data.limit", "8", "--data.val_share", "0"])
    assert count_images(limited).count == 8
    found = count_images(parse_recipe("finetune-mae", [*words, "--data.test_split", "null"]))
    assert found.classes == 2
    assert found.count == 10  # a fifth tests
    assert count_images(parse_recipe("digits")).count == 1442


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (
        ("cifar10", []), ("imagenet1k", []), ("cifar10", ["--data.source", "hf:someone/images"]),
        ("finetune-pets", []),
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError, match="--num-images N"):
            count_images(parse_recipe(name, words))
    assert list(tmp_path.iterdir()) == []


def test_asked_hardware() -> None:
    def ask(**values: object) -> Hardware:
        return asked_hardware(TrainerConfig(**values))  # type: ignore[arg-type]

    assert ask(accelerator="gpu", devices=8, num_nodes=2).world == 16
    assert ask(accelerator="cpu", devices="auto").world == 1
    assert ask(accelerator="gpu", devices="[0, 3]").devices == 2
    assert ask(accelerator="gpu", devices="4").devices == 4
    for bad in ("two", "0", 0):
        with pytest.raises(ValueError, match=r"trainer\.devices"):
            ask(devices=bad)
    here = Machine(device="cuda", name="", count=2, threads=1, free=1)
    assert Hardware(device="cuda", devices=2, nodes=1).is_here(here)
    assert not Hardware(device="cuda", devices=4, nodes=1).is_here(here)
    assert not Hardware(device="cuda", devices=2, nodes=2).is_here(here)


@pytest.mark.parametrize(("sharded", "rounds"), [(False, 2), (True, 3)])
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_exchanged_bytes_are_those_of_a_ring_walked_by_hand(
    devices: int, sharded: bool, rounds: int
) -> None:
    """In each of devices - 1 turns of a round a device passes one of as many parts on."""
    part = 4 * 24 // devices
    walked = sum(part for _ in range(rounds) for _ in range(devices - 1))
    assert exchanged_bytes(24, devices=devices, sharded=sharded) == walked


def test_what_several_devices_exchange_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.strategy", "ddp", "--no-measure", "--num-images", "1281167"]
    small = ["--model.depth", "1", "--model.decoder_depth", "1"]
    for nodes in ("1", "8"):
        assert main(["plan", "imagenet1k", *words, *small, "--trainer.num_nodes", nodes]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert f"exchange each of {8 * int(nodes)} devices sends and receives" in out
    assert main(["plan", "digits", "--no-measure"]) == 0
    assert "exchange" not in capsys.readouterr().out


# -- whole plans --------------------------------------------------------------------------------


def test_the_planned_disk_is_what_a_run_takes(tmp_path: Path) -> None:
    words = ["--optim.epochs", "2", "--optim.warmup_epochs", "1", "--record.checkpoint_epochs", "1",
             "--data.limit", "128", "--record.reconstruct_epochs", "0"]  # fmt: skip
    config = parse_recipe("digits", words)
    assert isinstance(config, PretrainConfig)
    found = plan_run(config, measure=False)
    pretrain(replace(config, data=replace(config.data, val_limit=8)), tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    checkpoints = [p.stat().st_size for p in files if p.suffix == ".ckpt"]
    assert len(checkpoints) == found.disk.checkpoints
    assert max(checkpoints) == pytest.approx(found.disk.checkpoint, rel=0.1)
    weights = [p.stat().st_size for p in files if p.suffix == ".safetensors"]
    assert len(weights) == found.disk.folders
    assert weights[0] == pytest.approx(found.disk.weights, rel=0.05)


@pytest.mark.parametrize("ema", [(), ("--optim.ema", "0.9")])
def test_a_frozen_encoder_is_held_but_has_neither_gradients_nor_moments(
    ema: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan beside the tensors that a real step leaves behind."""
    words = ["--weights", "cifar10-shallow", "--segment.freeze", "true", "--segment.classes", "5"]
    config = parse_recipe("finetune-segment", [*words, *ema])
    found = plan_run(config, images=1000, measure=False)
    subject = replace(planned_run(config), classes=5)
    module = subject.module()
    monkeypatch.setattr(PlannedRun, "module", lambda _: module)
    optimizers = []
    adamw = module.adamw

    def noted(**options: Any) -> torch.optim.Optimizer:
        optimizers.append(adamw(**options))
        return optimizers[-1]

    monkeypatch.setattr(module, "adamw", noted)
    make_step(subject, 2, "cpu", "32-true")()
    (optimizer,) = optimizers
    weights = list(module.model.parameters())
    assert found.parameters + found.frozen == sum(p.numel() for p in weights)
    assert found.state.weights == 4 * sum(p.numel() for p in weights)
    assert found.state.gradients == 4 * sum(p.numel() for p in weights if p.grad is not None)
    kept = [v for state in optimizer.state.values() for v in state.values() if v.numel() > 1]
    assert found.state.moments == 4 * sum(v.numel() for v in kept)
    average = getattr(module, "average", None)
    copied = 0 if average is None else sum(p.numel() for p in average.module.parameters())
    assert found.state.average == 4 * copied
    assert (copied > 0) == bool(ema)
    assert found.disk.weights == found.state.weights
    assert found.disk.checkpoint == found.state.total - found.state.gradients
    assert found.to_dict()["frozen"] == found.frozen > 10 * found.parameters
    text = " ".join(plan_text(found).split())
    assert f"0.23 million parameters ({found.parameters:,} of them train, the encoder" in text
    words[words.index("true")] = "false"
    trained = plan_run(parse_recipe("finetune-segment", words), images=1000, measure=False)
    assert (trained.parameters, trained.frozen) == (found.parameters + found.frozen, 0)
    assert "of them train" not in plan_text(trained)


def test_a_real_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "plan.json"
    words = ["--optim.batch_size", "4", "--json", str(target)]
    assert main(["plan", "digits", *words]) == 0
    out = capsys.readouterr().out
    found = json.loads(target.read_text())
    assert found["schedule"]["steps"] == 1442 // 4 * 180
    assert found["state"]["total"] == 16 * found["parameters"]
    measured = found["measured"]
    points = measured["probe"]["points"]
    assert measured["probe"]["out_of_memory"] is None
    assert [point["images"] for point in points] == sorted({p["images"] for p in points})
    assert all(point["peak"] > found["state"]["total"] for point in points)
    assert found["hours"] == pytest.approx(measured["step_seconds"] * 64_800 / 3600)
    assert "estimated" in out
    assert "without loading data" in out
    assert max(map(len, out.splitlines())) < 200


def test_arithmetic_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--num-images", "3680", "--from-scratch", "base", "--tflops", "50", "--no-measure"]
    assert main(["plan", "finetune-pets", *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1,000 classes (assumed; they change the head alone)" in out
    assert "steps 11,200 (28 an epoch, batch 128, 400 epochs)" in out
    assert "not measured (left out)" in out


def test_few_steps_are_told_of() -> None:
    found = planned("digits", "--optim.epochs", "12", measure=False, images=640)
    assert "very few" in plan_text(found)
    assert "very few" not in plan_text(planned(measure=False))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar1"], "did you mean 'cifar10'"),
        (["cifar10", "--data.source", "imagefolder:nowhere"], "--num-images N"),
        (["digits", "--json", "there.json", "--no-measure"], "exists and is not overwritten"),
        (["finetune-pets", "--num-images", "100"], "--from-scratch SIZE"),
        (["digits", "--num-images", "0"], "at least 1 image"),
        (["digits", "--num-images", "3", "--trainer.accumulate", "8"], "fewer than one batch"),
        (["digits", "--out", "full"], "full exists and is never overwritten"),
        (["digits", "--init-from", "cifar10-small", "--model.dim", "64"], "model.dim: 128 -> 64"),
        (["digits", "--init-from", "cifar10-small", "--model.patch_size", "16"], "patch_size"),
        (["digits", "--model.image_size", "32", "--model.patch_size", "16"], "smaller than a"),
        (
            ["finetune-few-labels", "--weights", "cifar10-small", "--data.source", "digits",
             "--data.augment.mixup", "0.2", "--optim.batch_size", "15"],
            "take images in pairs",
        ),
        (["digits", "--tflops", "-1"], "above 0"),
        (["digits", "--trainer.accumulate", "3"], "nearest 63"),
        (["finetune-mae", "--weights", "nowhere", "--num-images", "5000"], "nowhere"),
    ],
)  # fmt: skip
def test_faults_are_told_before_anything_is_measured(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert main(["plan", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "measuring" not in error
    assert (tmp_path / "there.json").read_text() == "mine"


def test_an_unknown_setting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", "digits", "--model.dimm", "3"])
    assert left.value.code == 2
    assert "--model.dim" in capsys.readouterr().err


def test_the_recipe_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", "--optim.epochs", "400", "own-images"])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert "the recipe comes first: crate-mae plan RECIPE --optim.epochs 400" in told
    assert main(["plan", "--no-measure", "--optim.epochs=19", "digits"]) == 0
    assert "19 epochs" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["digits", "finetune-cifar10-small"])
@pytest.mark.parametrize("vitmae", [False, True])
def test_computing_layers_again_costs_operations(name: str, vitmae: bool) -> None:
    words = ["--from-scratch", "debug"] if name != "digits" else []
    words += ["--vitmae", "configuration"] if vitmae else []
    plain, again = (
        replace(planned_run(parse_recipe(name, [*words, *more])), classes=3).flops(2)
        for more in ([], ["--trainer.recompute", "true"])
    )
    assert 1.1 < again / plain < 1.4  # forward is a third of a step


@pytest.mark.parametrize("changes", [[], ["--trainer.recompute", "true"]])
def test_a_masked_twin_is_planned_as_it_runs(changes: list[str]) -> None:
    config = parse_recipe("digits", ["--vitmae", "configuration", *changes])
    plan = plan_run(config, measure=False)
    model: Any = planned_run(config).module().model
    images = torch.rand(2, 1, 8, 8)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, ::2] = True
    real = counted_flops(lambda: torch.autograd.backward(model(images, mask).loss))
    assert plan.parameters == parameter_count(model)
    assert plan.flops == real // 2 * config.optim.batch_size
    assert "ViT-MAE baseline" in plan_text(plan)


def test_a_supervised_twin_is_planned_as_it_runs() -> None:
    config = parse_recipe(
        "finetune-cifar10-small",
        ["--from-scratch", "cifar10", "--vitmae", "parameters", "--data.source", "digits"],
    )
    plan = plan_run(config, images=500, measure=False)
    model = replace(planned_run(config), classes=plan.classes).module().model
    assert type(model).__name__ == "ViTClassifier"
    assert plan.parameters == parameter_count(model)
    assert plan.flops > 0
