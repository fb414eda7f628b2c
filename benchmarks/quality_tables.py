"""The outcome of a matrix as Markdown tables, and as curves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from matrix import ALTER, MEASURES
from tables import rule_below

OTHER_LOSS = {
    "masking.kind", "masking.ratio", "masking.ratio_max", "masking.ratio_per", "masking.square",
    "model.norm_pix_loss",
}  # fmt: skip
"""Settings under which a loss is of other patches or another target, so that it stands alone."""


def as_markdown(found: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    tables = (
        _comparison(found),
        [*_search(found), *_at_other_rates(found)],
        _finetuned(found),
        _ablations(found),
    )
    return "\n\n".join(text for text in map("\n".join, tables) if text)


def _comparison(found: Mapping[str, Any]) -> Iterator[str]:
    if not any(found["compared"].values()):
        return
    weighed = any("memory" in facts for facts in found["times"].get("models", {}).values())
    costs = ["time of a step", *(["memory of a step"] if weighed else [])]
    yield (
        f"|  | parameters | GFLOPs an image and step | {' | '.join(costs)} | loss | PSNR"
        " | linear probe | kNN | probe, 50 a class | probe, 500 a class | seeds |"
    )
    yield rule_below(10 + len(costs))
    for model, runs in found["compared"].items():
        if not runs:
            continue
        each = list(runs.values())
        first = each[0]
        cells = [
            f"**{model}**",
            f"{first['parameters'] / 1e6:.2f} M",
            f"{first['gflops_per_image']:.3f}",
            *_costs(found["times"], model, weighed),
            _over(each, "loss", "{:.4f}"),
            _over(each, "psnr", "{:.2f} dB"),
            *(_over(each, name, "{:.1f} %", scale=100) for name in MEASURES),
            str(len(each)),
        ]
        yield f"| {' | '.join(cells)} |"
    for name, values in found["baselines"].items():
        shown = (
            f"{name} of `{next(iter(found['compared']))}`" if name == "random baseline" else name
        )
        cells = [shown, *[""] * (4 + len(costs)), *(_percent(values.get(m)) for m in MEASURES), ""]
        yield f"| {' | '.join(cells)} |"


def _costs(times: Mapping[str, Any], model: str, weighed: bool) -> Iterator[str]:
    """How many times as long as the first model's a training step takes, and what it adds to the
    memory of the loaded model; empty where it was not measured."""
    facts = times.get("models", {}).get(model, {})
    yield f"{facts['relative']['median']:.2f} x" if facts else ""
    if weighed:
        yield f"{facts['memory']['above_loaded'] / 1e6:.0f} MB" if "memory" in facts else ""


def _search(found: Mapping[str, Any]) -> Iterator[str]:
    rates = list(next(iter(found["search"].values())))
    if all(loss is None for losses in found["search"].values() for loss in losses.values()):
        return  # nothing was searched
    yield f"| loss at base learning rate | {' | '.join(rates)} |"
    yield rule_below(len(rates) + 1)
    for model, losses in found["search"].items():
        best = min((loss for loss in losses.values() if loss is not None), default=None)
        if best is None:
            continue
        cells = [
            "" if loss is None else f"**{loss:.4f}**" if loss == best else f"{loss:.4f}"
            for loss in losses.values()
        ]
        yield f"| {model} | {' | '.join(cells)} |"


def _at_other_rates(found: Mapping[str, Any]) -> Iterator[str]:
    """Which compared runs were trained before the search went on and found a better rate."""
    for model, losses in found["search"].items():
        tried = {float(rate): loss for rate, loss in losses.items() if loss is not None}
        best = min(tried, key=lambda rate: tried[rate], default=None)
        rates = {run["base_lr"] for run in found["compared"].get(model, {}).values()}
        for rate in sorted(rates - {best}) if best is not None else ():
            yield f"\n`{model}` was trained at {rate:g}, the best rate before {best:g} was tried."


def _finetuned(found: Mapping[str, Any]) -> Iterator[str]:
    shares = {share: runs for share, runs in found["finetuned"].items() if any(runs.values())}
    if not shares:
        return
    models = [
        model for model in next(iter(shares.values())) if any(r[model] for r in shares.values())
    ]
    yield f"| fine-tuned with labels | {' | '.join(models)} |"
    yield rule_below(len(models) + 1)
    for share, runs in shares.items():
        cells = [_spread([100 * v for v in runs[m].values()], "{:.1f} %") for m in models]
        yield f"| {float(share):.0%} | {' | '.join(cells)} |"


def _ablations(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["ablations"]:
        return
    words = "linear probe, 10,000 images"
    yield f"| variant | parameters | GFLOPs an image and step | loss | PSNR | {words} |"
    yield rule_below(6)
    for variant, facts in found["ablations"].items():
        psnr = f"{facts['psnr']:.2f} dB" if "psnr" in facts else ""
        loss = f"{facts['loss']:.4f}" + (" †" if OTHER_LOSS & set(_changes(found, variant)) else "")
        cost = f"{facts['gflops_per_image']:.3f}" if "gflops_per_image" in facts else ""
        cells = [
            variant,
            f"{facts['parameters'] / 1e6:.2f} M",
            cost,
            loss,
            psnr,
            _percent(facts.get("probe")),
        ]
        yield f"| {' | '.join(cells)} |"


def comparable_losses(found: Mapping[str, Any]) -> dict[str, float]:
    """The losses of the variants, save those of other patches or another target."""
    return {
        variant: facts["loss"]
        for variant, facts in found["ablations"].items()
        if not OTHER_LOSS & set(_changes(found, variant))
    }


def altered_names(found: Mapping[str, Any]) -> set[str]:
    """Variants that are not CRATE-MAE any more."""
    return {v for v in found["ablations"] if {ALTER, "vitmae"} & set(_changes(found, v))}


def _changes(found: Mapping[str, Any], variant: str) -> Mapping[str, Any]:
    return found["matrix"]["ablations"]["variants"].get(variant) or {}


def panels(found: Mapping[str, Any]) -> dict[str, dict[str, list[list[tuple[float, float]]]]]:
    """The curves of the compared models over epochs, and over the operations they cost."""
    compared = {model: list(runs.values()) for model, runs in found["compared"].items() if runs}

    def curves(scale: Callable[[Mapping[str, Any]], float]) -> dict[str, Any]:
        return {
            model: [[(epoch * scale(run), loss) for epoch, loss in run["curve"]] for run in runs]
            for model, runs in compared.items()
        }

    return {
        "epochs": curves(lambda _: 1.0),
        "floating-point operations (10^15)": curves(
            lambda run: run["pflops"] / run["curve"][-1][0]
        ),
    }


def _over(runs: Sequence[Mapping[str, Any]], key: str, form: str, scale: float = 1.0) -> str:
    return _spread([scale * run[key] for run in runs if key in run], form)


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, and the range where there are several."""
    if not values:
        return ""
    mean = form.format(fmean(values))
    if len(values) == 1:
        return mean
    bare = form.split("}")[0] + "}"
    return f"{mean} ({bare.format(min(values))} to {bare.format(max(values))})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
