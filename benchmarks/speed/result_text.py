"""A benchmark's result as text."""

from collections.abc import Sequence
from typing import Any

from crate_mae.common.text import bytes_text, time_text
from crate_mae.common.text_tables import aligned, named_values


def result_text(result: dict[str, Any]) -> str:
    """The whole result of `run_bench` as aligned tables."""
    machine, settings = result["machine"], result["settings"]
    gpu = _gpu(settings["device"], machine["devices"])
    parts = [
        f"{settings['model']}: images {_size(settings['config']['image_size'])}, patches"
        f" {_size(settings['config']['patch_size'])}; {machine['processor']},"
        f" {machine['threads']} threads{gpu}; torch {machine['torch']}"
    ]
    parts += [case_text(case) for case in result["cases"]]
    parts += [growth_text(growth) for growth in result.get("growth", [])]
    if "loading" in result:
        parts.append(loading_text(result["loading"]))
    parts.append("\n".join(named_values(result["subjects"].items())))
    if result["notes"]:
        parts.append("\n".join(result["notes"]))
    return "\n\n".join(parts)


def case_text(case: dict[str, Any]) -> str:
    """One kind of work: a line a subject, the limit below.

    "x crate" is how many times as long as `crate` a subject takes, with its quartiles over rounds.
    """
    limit, memory = case.get("limit"), case.get("memory")
    heads = ["subject", "time", "quartiles", "images/s", "x crate", "quartiles"]
    heads += ["of the limit"] if limit else []
    heads += ["peak memory", "above loaded"] if memory else []
    lines = [heads]
    timed = case["subjects"]
    for name in dict.fromkeys([*timed, *(memory or {})]):  # some may fit only when alone
        own = timed.get(name)
        if own is None:
            held = (memory or {})[name]
            cells = ["-"] * (len(heads) - 3)
            sizes = [bytes_text(held.get("peak")), bytes_text(held.get("above_loaded"))]
            lines.append([name, *cells, *sizes])
            continue
        seconds, ratio = own["seconds"], own.get("speedup")
        line = [
            name,
            time_text(seconds["median"]),
            f"{time_text(seconds['lower'])}..{time_text(seconds['upper'])}",
            f"{own['images_per_second']:.4g}",
            "" if ratio is None else f"{ratio['median']:.2f}",
            "" if ratio is None else f"{ratio['lower']:.2f}..{ratio['upper']:.2f}",
        ]
        if limit:
            share = limit["share"].get(name)
            line.append("" if share is None else f"{share['median']:.0%}")
        if memory:
            held = memory[name]
            line += [bytes_text(held.get("peak")), bytes_text(held.get("above_loaded"))]
        lines.append(line)
    rounds = max((len(own["rounds"]) for own in timed.values()), default=0)
    title = (
        f"{case['work']}, batch {case['batch']} ({case['tokens']} tokens), {case['precision']},"
        f" {rounds} rounds"
    )
    notes = []
    if limit:
        rate = limit["flops_per_second"]["median"] / 1e9
        notes.append(
            f"limit: {time_text(limit['seconds']['median'])} for {limit['flops'] / 1e9:.4g} GFLOP"
            f" of matrix products at {rate:.4g} GFLOP/s"
        )
    notes += [f"{k}: {held['note']}" for k, held in (memory or {}).items() if "note" in held]
    return "\n".join([title, *aligned(lines, indent="  "), *(f"  {note}" for note in notes)])


def growth_text(growth: dict[str, Any]) -> str:
    """Growth with the image: a line a size of every subject, exponents below them."""
    lines = [["subject", "image", "tokens", "time", "memory of the step", "peak"]]
    ends = []
    for name, own in growth["subjects"].items():
        for point in own["points"]:
            lines.append(
                [
                    name,
                    _size(point["image_size"]),
                    str(point["tokens"]),
                    time_text(point["step_seconds"]),
                    bytes_text(point["above_settled"]),
                    bytes_text(point["peak"]),
                ]
            )
        ends.append(
            f"{name}: memory grows with tokens^{_power(own['memory_exponent'])}"
            f" ({_power(own['memory_exponent_at_the_end'])} at the end), time with"
            f" tokens^{_power(own['time_exponent'])} ({_power(own['time_exponent_at_the_end'])})"
        )
        ends += [f"{name}: {own['note']}"] if own["note"] else []
    title = f"growth, {growth['work']}, batch {growth['batch']}, {growth['precision']}"
    return "\n".join([title, *aligned(lines, indent="  "), *(f"  {line}" for line in ends)])


def loading_text(loading: dict[str, Any]) -> str:
    """Loading speed: a line a source and number of workers."""
    takes = loading["step_images_per_second"]
    lines = [["source", "image", "workers", "images/s", "of what a step takes"]]
    for row in loading["rows"]:
        # Digits keep their own small size, so a step on larger images tells nothing about them.
        rate = row["images_per_second"]
        untold = rate is None or takes is None or row["source"] == "digits"
        lines.append(
            [
                row["source"],
                _size(row["image_size"]),
                str(row["workers"]),
                "-" if rate is None else f"{rate:.4g}",
                "" if untold else f"{rate / takes:.1f} x",
            ]
        )
    told = "" if takes is None else f"; a training step of crate takes {takes:.4g} images/s"
    notes = [
        f"  {row['source']}, {row['workers']} workers: {row['note']}"
        for row in loading["rows"]
        if "note" in row
    ]
    return "\n".join(
        [f"loading, batch {loading['batch']}{told}", *aligned(lines, indent="  "), *notes]
    )


def _gpu(device: str, names: Sequence[str]) -> str:
    """What tells which GPU was used; nothing for other devices."""
    kind, _, index = device.partition(":")
    return f", {names[int(index or 0)]}" if kind == "cuda" else ""


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _power(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
