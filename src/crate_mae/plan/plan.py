"""A run before it starts: what it computes, what it needs, how long it may take here."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from crate_mae.common.peak_memory import PeakMemory, peak_memory
from crate_mae.plan.amounts import (
    DiskUse,
    MemoryLine,
    Schedule,
    TrainingState,
    accumulation,
    disk_use,
    exchanged_bytes,
    memory_line,
    schedule,
    training_state,
)
from crate_mae.plan.machine import Hardware, Machine, asked_hardware, this_machine
from crate_mae.plan.probe_step import Measure, Probe, probe_step, scaled_seconds
from crate_mae.plan.real_step import PlannedRun, RunSettings, make_step, planned_run
from crate_mae.plan.recipe import Images, count_images
from crate_mae.training.classify_task import check_pairs
from crate_mae.training.config import FinetuneConfig, Precision
from crate_mae.training.session import batch_per_device
from crate_mae.training.short_runs import fitted_to_images

TIMEOUT = 90.0  # seconds: for one measurement, on a machine that hangs or pages
CLASSES = 1000
"""Assumed of a supervised run whose images are not here."""
PIXEL_CLASSES = 150
"""Assumed of a run on masks that are not here, where it does not say: ADE20K's."""


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """What real steps on generated images took on this machine, in one process on one device."""

    precision: Precision
    probe: Probe
    line: MemoryLine | None
    """Peak over images, where two measurements give one."""
    peak: int | None
    """Bytes at the recipe's batch per device: measured, or read off the line."""
    peak_measured: bool
    largest: int | None
    """Images at a time, in each process, that should fit in its share of the free memory."""
    accumulate: int | None
    """`trainer.accumulate` that brings the batch down to that, the effective batch unchanged."""
    step_seconds: float | None
    """A device's share of an optimiser step."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything known of a run before it starts."""

    config: RunSettings
    """With the architecture filled in."""
    adapted: RunSettings
    """As it was given, but with a batch that the images fill."""
    classes: int
    parameters: int
    """Those that train."""
    frozen: int
    """Parameters of parts that stay as they are: held and saved, but without gradients."""
    tokens: tuple[int, int | None]
    per_device: int
    """Images at a time on each device."""
    flops: int
    """Of an optimiser step, over all devices."""
    images: Images
    schedule: Schedule
    asked: Hardware
    machine: Machine
    state: TrainingState
    disk: DiskUse
    measured: MeasuredStep | None
    tflops: float | None
    """Given achieved rate of one device, in 10^12 operations a second."""

    @property
    def here(self) -> bool:
        """Whether this machine is what the recipe asks for."""
        return self.asked.is_here(self.machine)

    @property
    def hours(self) -> float | None:
        """Hours of the whole run on this machine, from measured steps; None when not measured.

        On one device that does the shares of all devices in turn where there are more of them;
        processes on one CPU take as long as if they took turns, since they share its cores.
        """
        if self.measured is None or self.measured.step_seconds is None:
            return None
        alone = self.here and self.asked.device != "cpu"
        turns = 1 if alone else self.asked.world
        return self.measured.step_seconds * turns * self.schedule.steps / 3600

    @property
    def hours_at_rate(self) -> float | None:
        """Hours on the hardware asked for, if each device (or node's CPU) achieves `tflops`."""
        if self.tflops is None:
            return None
        return self.flops * self.schedule.steps / (self.tflops * 1e12 * self.asked.units) / 3600

    @property
    def exchanged(self) -> int:
        """Bytes that each device sends, and receives, in a step; 0 on a single one."""
        return exchanged_bytes(
            self.parameters,
            devices=self.asked.world,
            sharded=self.config.trainer.strategy == "fsdp",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; memory in bytes, time in seconds and hours."""
        left_out = ("config", "adapted")
        values = {key: value for key, value in asdict(self).items() if key not in left_out}
        values["config"] = self.config.to_dict()
        values["tokens"] = list(self.tokens)
        values["state"]["total"] = self.state.total
        values["disk"]["total"] = self.disk.total
        times = {"hours": self.hours, "hours_at_rate": self.hours_at_rate}
        return {**values, **times, "exchanged": self.exchanged}


def plan_run(
    config: RunSettings,
    *,
    images: int | None = None,
    measure: bool = True,
    tflops: float | None = None,
    measurement: Callable[[PlannedRun, Machine, Precision], Measure] | None = None,
    progress: Callable[[str], None] | None = None,
) -> RunPlan:
    """The plan of a run; `images` replaces counting them, `measure` False leaves real steps out.

    `tflops` is an achieved rate of one device to reckon with; `measurement` is what measures a step
    (a fresh process each time, unless given); `progress` is told what is being measured. Raises
    FileNotFoundError for data that are not here, ValueError for settings, weights or data that do
    not fit together.
    """
    if images is not None and images < 1:
        raise ValueError(f"a run needs at least 1 image, not {images}")
    if tflops is not None and not 0 < tflops < float("inf"):
        raise ValueError(f"an achieved rate is a finite number above 0, not {tflops}")
    asked = asked_hardware(config.trainer)
    batch_per_device(config, asked.world)
    subject = planned_run(config)
    given = None if images is None else Images(count=images, origin="given by --num-images")
    counted = given or count_images(subject.config, model=subject.model, size=subject.image_hw)
    config = fitted_to_images(config, counted.count, asked.world * config.trainer.accumulate)
    optim: Any = config.optim  # of the kind of run that it is
    subject = replace(subject, config=replace(subject.config, optim=optim))
    per_device = batch_per_device(config, asked.world)
    classes = 0
    if isinstance(config, FinetuneConfig):
        check_pairs(config, per_device)
        classes = counted.classes or _assumed_classes(config)
        subject = replace(subject, classes=classes)
    planned = schedule(counted.count, config.optim)
    machine = this_machine(asked)
    flops = cache(subject.flops)
    parameters, frozen, average = subject.parameters(), subject.frozen(), subject.average
    measured = None
    if measure and machine.device != "mps":  # where nothing tells the peak
        precision = _precision(config, asked, machine)
        means = (measurement or _in_fresh_process)(subject, machine, precision)
        probe = probe_step(
            means, images=per_device, flops=flops, free=machine.free, progress=progress
        )
        measured = _measured(config, probe, asked, machine, per_device, precision, flops)
    return RunPlan(
        config=subject.config,
        adapted=config,
        classes=classes,
        parameters=parameters,
        frozen=frozen,
        tokens=subject.tokens,
        per_device=per_device,
        flops=flops(per_device) * asked.world * config.trainer.accumulate,
        images=counted,
        schedule=planned,
        asked=asked,
        machine=machine,
        state=training_state(
            parameters,
            frozen=frozen,
            average=average,
            shards=asked.world if config.trainer.strategy == "fsdp" else 1,
        ),
        disk=disk_use(
            parameters,
            frozen=frozen,
            record=config.record,
            epochs=config.optim.epochs,
            validated=validates(config),
            average=average,
        ),
        measured=measured,
        tflops=tflops,
    )


def _assumed_classes(config: FinetuneConfig) -> int:
    if config.task == "classify":
        return CLASSES
    said = config.segment.classes
    return PIXEL_CLASSES if said is None else said if isinstance(said, int) else len(said)


def validates(config: RunSettings) -> bool:
    """Whether a run holds images out, or names some, to validate with."""
    data = config.data
    held_out = data.val_share > 0 and not data.source.startswith("wds:")
    return held_out or data.val_source is not None or data.val_split is not None


def _in_fresh_process(subject: PlannedRun, machine: Machine, precision: Precision) -> Measure:
    def measure(images: int, warmup: int, steps: int) -> PeakMemory:
        return peak_memory(
            make_step,
            {"subject": subject, "images": images, "device": machine.device,
             "precision": precision},
            device=machine.device,
            warmup=warmup,
            steps=steps,
            timeout=TIMEOUT,
        )  # fmt: skip

    return measure


def _precision(config: RunSettings, asked: Hardware, machine: Machine) -> Precision:
    # bf16 is what a GPU is asked for; a CPU that stands in for it would only be slowed down.
    return config.trainer.precision if machine.device == asked.device else "32-true"


def _measured(
    config: RunSettings,
    probe: Probe,
    asked: Hardware,
    machine: Machine,
    per_device: int,
    precision: Precision,
    flops: Callable[[int], int],
) -> MeasuredStep:
    """What follows from measurements for the recipe's own batch."""
    points, line, largest, seconds = probe.points, None, None, None
    if len(points) > 1 and points[-1].peak > points[0].peak:
        line = memory_line([(point.images, point.peak) for point in points])
    direct = bool(points) and points[-1].images == per_device
    peak = points[-1].peak if direct else None if line is None else line.at(per_device)
    if line is not None and machine.share is not None:
        largest = line.largest(machine.share)
    if points:
        seconds = scaled_seconds(points[-1], per_device, flops) * config.trainer.accumulate
    elif probe.out_of_memory is not None:
        largest = 0
    return MeasuredStep(
        precision=precision,
        probe=probe,
        line=line,
        peak=peak,
        peak_measured=direct,
        largest=largest,
        accumulate=None
        if largest is None
        else accumulation(config.optim.batch_size, devices=asked.world, largest=largest),
        step_seconds=seconds,
    )
