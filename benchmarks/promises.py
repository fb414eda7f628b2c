"""What is promised, and whether measured parts keep it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from speed.harness import speedup
from speed.subjects import Work

Kind = Literal["speed", "limit", "memory", "growth"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One promise."""

    title: str
    part: str
    """Which part of the measurement holds it."""
    kind: Kind
    """"speed": how many times as long `against` takes as `subject`; "limit": the share of the
    limit; "memory": peak of the process over that of `against`; "growth": exponent of memory."""
    wanted: float
    subject: str = "crate"
    against: str = "crate-reference"
    work: Work = "train"

    @property
    def at_most(self) -> bool:
        """Whether smaller is better."""
        return self.kind in ("memory", "growth")


def _speed(title: str, part: str, wanted: float, **more: Any) -> Target:
    return Target(title=title, part=part, kind="speed", wanted=wanted, **more)


BASE, FEATURES = "base, training", "base, features"
TARGETS = (
    _speed("base: step, times as fast as the reference arithmetic", BASE, 1.8),
    _speed(
        "base: step, times as fast as ViT-MAE (published decoder)",
        BASE,
        1.0,
        against="vitmae-published",
    ),
    _speed(
        "base: step, times as fast as ViT-MAE (same configuration)",
        BASE,
        1.0,
        against="vitmae-twin",
    ),
    _speed(
        "base: visible-only step, times as fast as ViT-MAE (published decoder)",
        BASE,
        1.7,
        subject="crate-visible",
        against="vitmae-published",
    ),
    _speed(
        "base: visible-only step, times as fast as ViT-MAE (same configuration)",
        BASE,
        1.7,
        subject="crate-visible",
        against="vitmae-twin",
    ),
    _speed(
        "base: features, times as fast as the reference arithmetic", FEATURES, 1.8, work="encode"
    ),
    _speed(
        "base: features, times as fast as timm's ViT",
        FEATURES,
        3.0,
        against="timm-vit",
        work="encode",
    ),
    Target(title="base: step, share of the limit", part=BASE, kind="limit", wanted=0.85),
    Target(
        title="base: features, share of the limit",
        part=FEATURES,
        kind="limit",
        wanted=0.85,
        work="encode",
    ),
    Target(
        title="base: peak memory of a step, over the reference's",
        part="base, memory",
        kind="memory",
        wanted=0.6,
    ),
    Target(
        title="base: memory of a step grows with tokens to the power of",
        part="base, growth",
        kind="growth",
        wanted=1.1,
    ),
    *(
        _speed(f"{name}: {what}, times as fast as the reference arithmetic", name, 1.5, work=work)
        for name in ("cifar10", "tiny, 32 px")
        for work, what in (("train", "step"), ("encode", "features"))
    ),
)


def judged(targets: Sequence[Target], parts: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every target, JSON-able; "measured" and "met" are None where its part is missing.

    "lower" and "upper" are quartiles over rounds, where there are rounds.
    """
    rows = []
    for target in targets:
        found = _found(target, parts.get(target.part, {}))
        value = None if found is None else found["measured"]
        met = None
        if value is not None:
            met = value <= target.wanted if target.at_most else value >= target.wanted
        rows.append(
            {
                "target": target.title,
                "kind": target.kind,
                "wanted": target.wanted,
                "at_most": target.at_most,
                **(found or {"measured": None}),
                "met": met,
            }
        )
    return rows


def _found(target: Target, part: dict[str, Any]) -> dict[str, Any] | None:
    """The measured value of a target, or None while its part is not done."""
    if target.kind == "growth":
        return _grown(target, part.get("growth", []))
    case = next((case for case in part.get("cases", []) if case["work"] == target.work), None)
    if case is None:
        return None
    if target.kind == "memory":
        own, other = (case["memory"][name].get("peak") for name in (target.subject, target.against))
        return {"measured": own / other} if own and other else None
    if target.kind == "limit":
        share = case.get("limit", {"share": {}})["share"].get(target.subject)
        if share is None:  # memory ran out
            return None
    else:
        if not {target.subject, target.against} <= set(case["subjects"]):
            return None
        times = {name: own["rounds"] for name, own in case["subjects"].items()}
        share = speedup(times, target.against, target.subject).to_dict()
    return {"measured": share["median"], "lower": share["lower"], "upper": share["upper"]}


def _grown(target: Target, growths: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The larger of the exponents over all sizes and between the last two."""
    for growth in growths:
        own = growth["subjects"].get(target.subject)
        if growth["work"] == target.work and own is not None and own["note"] is None:
            slopes = (own["memory_exponent"], own["memory_exponent_at_the_end"])
            return None if None in slopes else {"measured": max(slopes)}
    return None
