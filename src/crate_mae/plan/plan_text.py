"""A plan as text for a terminal."""

from collections.abc import Iterator

from crate_mae.common.text import bytes_text, duration, time_text
from crate_mae.common.text_tables import named_values
from crate_mae.evaluation.answers import FEW_STEPS
from crate_mae.plan.amounts import SPARE
from crate_mae.plan.machine import Hardware
from crate_mae.plan.plan import MeasuredStep, RunPlan
from crate_mae.plan.within import FittingRun
from crate_mae.training.config import FinetuneConfig, PretrainConfig

FAR = 16
"""Times the measured images from which an estimate of memory is a rough one, or left out."""
LONG = 3.0
"""Hours from which a shorter run is offered."""
_WIDTH = 96
_KINDS = {"cpu": "CPU", "cuda": "GPU", "mps": "Apple GPU"}

Row = tuple[str, str]


def fitting_text(found: FittingRun, command: str) -> str:
    """The plan of a run that was fitted to a time, what was changed for it, and its command."""
    reasons = [f"- {reason}" for reason in found.reasons]
    heading = f"within {duration(found.seconds)} on this machine:"
    return "\n".join([plan_text(found.plan), "", heading, *reasons, "", command])


def plan_text(plan: RunPlan) -> str:
    """Aligned text: the model, the work, the memory, the time and the disk of a run."""
    rows = [*_work(plan), *_hardware(plan), *_memory(plan), *_time(plan), *_disk(plan)]
    return "\n".join(named_values(rows, wrap=_WIDTH))


def _work(plan: RunPlan) -> Iterator[Row]:
    config, (encoder, decoder) = plan.config, plan.tokens
    if isinstance(config, FinetuneConfig):
        assumed = "" if plan.images.classes else " (assumed; they change the head alone)"
        of = "" if config.task == "classify" else f" of pixels, {config.segment.head} head"
        yield "run", f"{config.name}: supervised training of {plan.classes:,} classes{of}{assumed}"
    else:
        yield "run", f"{config.name}: {_what_is_trained(config)}"
    inside = "" if decoder in (None, encoder) else f" in the encoder, {decoder:,} in the decoder"
    yield (
        "model",
        f"{_millions(plan)}; {encoder:,} tokens an image{inside}",
    )
    planned = plan.schedule
    yield "images", f"{planned.images:,} for training ({plan.images.origin})"
    yield (
        "steps",
        (
            f"{planned.steps:,} ({planned.steps_per_epoch:,} an epoch, batch {planned.batch:,},"
            f" {planned.epochs:,} epochs): {planned.samples:,} samples seen"
        ),
    )
    if planned.steps < FEW_STEPS:
        yield (
            "",
            (
                "very few, above all from scratch: more epochs or a smaller optim.batch_size"
                " usually help"
            ),
        )
    yield (
        "operations",
        (
            f"{_scaled(plan.flops / planned.batch)}FLOP an image and {_scaled(plan.flops)}FLOP a"
            f" step, forward and backward; {plan.flops * planned.steps:.2g} FLOP in all"
        ),
    )


def _millions(plan: RunPlan) -> str:
    """How many parameters there are, and how many of them train where that is not all."""
    if not plan.frozen:
        return f"{plan.parameters / 1e6:.2f} million parameters"
    every = (plan.parameters + plan.frozen) / 1e6
    trained = f"{plan.parameters:,} of them train, the encoder stays as it is"
    return f"{every:.2f} million parameters ({trained})"


def _what_is_trained(config: PretrainConfig) -> str:
    if config.method == "simdino":
        encoder, crops = "" if config.vitmae is None else " of a ViT", config.simdino.crops
        height, width = crops.local_hw
        local = f"{crops.local_views} local crops of {height}x{width}"
        return f"SimDINO pre-training{encoder}, 2 global and {local} an image"
    baseline = "" if config.vitmae is None else " of the ViT-MAE baseline"
    masks = f"{config.masking} of the patches removed"
    return f"masked pre-training{baseline}, {masks}"


def _hardware(plan: RunPlan) -> Iterator[Row]:
    asked, machine = plan.asked, plan.machine
    nodes = "" if asked.nodes == 1 else f" on {asked.nodes} nodes"
    times = plan.config.trainer.accumulate
    turns = "" if times == 1 else f", {times} times a step"
    yield (
        "asked for",
        (
            f"{_devices(asked)}{nodes}:"
            f" {plan.per_device:,} images at a time on each{turns}; {plan.config.trainer.precision}"
        ),
    )
    count = f"{machine.count} x " if machine.device == "cuda" else ""
    threads = f", {machine.threads} threads" if machine.device == "cpu" else ""
    free = "" if machine.free is None else f"; {bytes_text(machine.free)} of memory free"
    yield "here", f"{count}{_KINDS[machine.device]} ({machine.name}){threads}{free}"


def _devices(asked: Hardware) -> str:
    """How many of what; several on one CPU are processes."""
    what = "CPU process" if asked.device == "cpu" and asked.devices > 1 else _KINDS[asked.device]
    plural = "es" if what.endswith("s") else "s"
    return f"{asked.world} {what}{plural if asked.world > 1 else ''}"


def _memory(plan: RunPlan) -> Iterator[Row]:
    state = plan.state
    average = f" + average {bytes_text(state.average)}" if state.average else ""
    shared = " (sharded by fsdp)" if plan.config.trainer.strategy == "fsdp" else ""
    yield (
        "state",
        (
            f"weights {bytes_text(state.weights)} + gradients {bytes_text(state.gradients)}"
            f" + AdamW moments {bytes_text(state.moments)}{average} = {bytes_text(state.total)}"
            f" on each device{shared}"
        ),
    )
    if plan.exchanged:
        yield (
            "exchange",
            (
                f"each of {plan.asked.world} devices sends and receives"
                f" {bytes_text(plan.exchanged)} a step (float32, in a ring)"
            ),
        )
    measured = plan.measured
    if measured is None:
        why = "not on an Apple GPU" if plan.machine.device == "mps" else "left out"
        yield "peak", f"not measured ({why}): the activations of a batch come on top of the state"
        return
    yield "peak", _peak(plan, measured)
    yield "", _room(plan, measured)


def _peak(plan: RunPlan, measured: MeasuredStep) -> str:
    probe, last = measured.probe, measured.probe.points[-1:]
    where = f"in a process of its own, all that it holds, {measured.precision}"
    if probe.out_of_memory is not None:
        fits = f"; {last[0].images:,} did, with {bytes_text(last[0].peak)}" if last else ""
        return f"{probe.out_of_memory:,} images at a time did not fit{fits} ({where})"
    if not last:
        return f"not measured: steps of {probe.too_slow:,} images took too long here"
    point = last[0]
    if measured.peak is None:
        return (
            f"{bytes_text(point.peak)} at {point.images:,} images at a time, measured {where};"
            f" not known at {plan.per_device:,}"
        )
    if measured.peak_measured:
        return f"{bytes_text(measured.peak)} at {point.images:,} images at a time, measured {where}"
    few = probe.points[0]
    far = "roughly " if plan.per_device > FAR * point.images else ""
    return (
        f"about {bytes_text(measured.peak)} at {plan.per_device:,} images at a time,"
        f" {far}estimated: {bytes_text(few.peak)} at {few.images:,} and {bytes_text(point.peak)}"
        f" at {point.images:,} were measured {where}"
    )


def _room(plan: RunPlan, measured: MeasuredStep) -> str:
    free, largest = plan.machine.share, measured.largest
    here, processes = " on this machine", plan.machine.processes
    held_at_once = "" if largest is None else _held(largest, measured)
    if plan.machine.device != plan.asked.device:
        held = "" if largest is None else f" and would hold {held_at_once} images at a time"
        return (
            f"this machine is not what is asked for{held}: a device that is needs the peak free,"
            " less in mixed precision"
        )
    if free is None or (largest is None and measured.peak is None):
        return "whether it fits is not known" + here
    shared = "" if processes == 1 else f" that each of {processes} processes has"
    room = f"{SPARE:.0%} of the free {bytes_text(free)}{shared}"
    if largest is None:
        fits = measured.peak is not None and measured.peak <= SPARE * free
        return f"{'fits' if fits else 'does not fit'} in {room}{here}"
    if largest >= plan.per_device:
        return f"fits{here}: {held_at_once} images at a time do, in {room}"
    if measured.accumulate is None:
        return (
            f"does not fit{here}, where {held_at_once} images at a time do ({room}), and no"
            f" trainer.accumulate divides the batch so:{_recompute(plan)} a smaller"
            " optim.batch_size, a smaller model or larger patches"
        )
    return (
        f"does not fit{here}, where {held_at_once} images at a time do ({room}):"
        f" --trainer.accumulate {measured.accumulate} keeps the batch of"
        f" {plan.schedule.batch:,} and computes it in parts;{_recompute(plan)} a smaller"
        " optim.batch_size changes it"
    )


def _recompute(plan: RunPlan) -> str:
    return (
        "" if plan.config.trainer.recompute else " --trainer.recompute true takes time for memory;"
    )


def _time(plan: RunPlan) -> Iterator[Row]:
    measured, rate = plan.measured, plan.hours_at_rate
    if measured is not None and measured.step_seconds is not None and plan.hours is not None:
        point = measured.probe.points[-1]
        several = plan.machine.processes > 1
        share = "a step" if plan.asked.world == 1 else "a device's share of a step"
        if several:
            share = "a process's share of a step, alone on the cores,"
        scaled = (
            ""
            if point.images == plan.per_device
            else f", scaled by operations from {point.images:,} images at a time"
        )
        yield (
            "time",
            (
                f"{time_text(measured.step_seconds)} {share} here{scaled}"
                f" ({_scaled(_achieved(plan, measured))}FLOP/s achieved)"
            ),
        )
        alone = "" if plan.here else ", if this machine did it all on one device"
        if plan.here and several:
            alone = f", as its {plan.asked.world} processes share the cores"
        yield (
            "",
            (
                f"estimated {_long(plan.hours)} for the whole run{alone}, without loading data,"
                " validation and saving" + (", not compiled" if plan.config.trainer.compile else "")
            ),
        )
        if plan.hours > LONG:
            yield (
                "",
                (
                    "--within 1h (or 10m, 8h) chooses sizes and epochs that fit, and prints the"
                    " command"
                ),
            )
    if rate is not None:
        yield (
            "",
            (
                f"at {plan.tflops:g} TFLOP/s achieved by each of {plan.asked.units} devices:"
                f" {_long(rate)}, if loading data and exchanging gradients cost nothing"
            ),
        )
    elif not plan.here:
        yield (
            "",
            (
                "on the hardware asked for: not known here; --tflops N reckons with a rate that you"
                " know of one device"
            ),
        )


def _achieved(plan: RunPlan, measured: MeasuredStep) -> float:
    assert measured.step_seconds is not None
    return plan.flops / plan.asked.world / measured.step_seconds


def _disk(plan: RunPlan) -> Iterator[Row]:
    disk = plan.disk
    yield (
        "disk",
        (
            f"{bytes_text(disk.total)}: {disk.checkpoints} checkpoints of"
            f" {bytes_text(disk.checkpoint)} (and one being written), {disk.folders} weights"
            f" folders of {bytes_text(disk.weights)}"
        ),
    )


def _scaled(count: float) -> str:
    """Three digits and the prefix of a unit: 60.3 G."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {prefix}"
        count /= 1000
    return f"{count:.3g} E"


def _held(count: int, measured: MeasuredStep) -> str:
    """How many images fit, read off a line: two digits, or no more than it can say from afar."""
    points = measured.probe.points
    if points and count > FAR * points[-1].images:
        return f"more than {FAR * points[-1].images:,}"
    return f"about {int(float(f'{count:.2g}')):,}"


def _long(hours: float) -> str:
    if hours < 100:
        return duration(3600 * hours)
    days = hours / 24
    return f"{days:.3g} days" if days < 1000 else f"{days / 365.25:,.0f} years"
