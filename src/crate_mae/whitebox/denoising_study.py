"""An experiment on known subspaces: do compression steps move tokens where the best denoiser does?

`sweeps` names the settings, `measure` one of them for one seed, `study` all of them over seeds.
Tokens are scaled so that E|z|^2 = d, the squared length that LayerNorm gives them in the model, so
`noise` is at once sigma and the ratio of noise to signal. docs/theory.md tells what comes out.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.common.environment import environment
from crate_mae.common.files import replacing, write_atomically
from crate_mae.common.progress import Progress
from crate_mae.common.text_tables import aligned
from crate_mae.whitebox.denoising import (
    Mixture,
    Tokens,
    attention_limit,
    compression_step,
    denoise_exact,
    matched_temperature,
    project,
    project_own,
    sample_tokens,
    subspace_attention,
    subspaces,
)
from crate_mae.whitebox.measures import subspace_coding_rate

METHODS = {
    "noisy": "the tokens as observed: nothing done",
    "exact": "E[z | x], the posterior mean: nothing has a smaller expected error",
    "projection": "projection onto the true subspace, which no denoiser is told",
    "shrink": "control: x / (1 + sigma^2), the best that one factor for all tokens does",
    "gradient": "x - kappa dR^c/dx",
    "gradient_wrong": "control: the same against other subspaces, drawn anew",
    "mssa": "MSSA(x), tied, softmax temperature sqrt(p) as published",
    "mssa_residual": "x + MSSA(x), the published layer without its norm",
    "mssa_matched": "MSSA(x) at the matched temperature",
    "mssa_wrong": "control: the same against other subspaces, drawn anew",
    "mssa_limit": "MSSA(x) at the matched temperature with infinitely many tokens",
}

MEASURES = {
    "alignment": "cosine of the displacement f(x) - x with the exact denoiser's, mean over tokens",
    "turning": "the same for the parts of both that are orthogonal to x: chance is 0",
    "error": "sum |f(x) - z|^2 / sum |x - z|^2",
    "best_step": "factor on the displacement that makes that error least (it knows z)",
    "best_error": "the error at that factor",
    "direction_error": "1 - cos^2(f(x), z), mean over tokens: the error no scaling removes",
    "outside": "share of the energy of f(x) outside each token's own subspace",
    "toward": "share of the tokens whose own share outside falls",
    "rate": "R^c(f(x)) in nats a token",
    "rate_equal_energy": "R^c of f(x) scaled to the energy of x, in nats a token",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One cell of the experiment. Raises ValueError for values that cannot be."""

    dim: int = 128
    size: int = 16
    """p, the dimension of every subspace."""
    count: int = 8
    """K, how many there are."""
    tokens: int = 48
    """N, tokens in a set: those that compress, and attend to, each other."""
    noise: float = 0.5
    coherence: float | None = 0.0
    """Cosine of all principal angles between any two subspaces; None: drawn at random."""
    precision: float = 1.0
    """eps^2 of R^c in units of p sigma^2."""
    temperature: float = 1.0
    """Softmax temperature of "mssa_matched", "mssa_wrong" and "mssa_limit" over the matched one."""

    def __post_init__(self) -> None:
        for name in ("dim", "size", "count", "tokens", "noise", "precision", "temperature"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {value}")


def sweeps(*, quick: bool = False) -> list[tuple[str, Setting]]:
    """(axis, setting) of the experiment: one thing at a time around the default setting.

    The default has the proportions of a base model on a 224-pixel image (K = 12, p = 64, d = K p,
    N = 197): orthogonal subspaces that fill the space, and a quarter to a third as many tokens as
    dimensions. `quick` keeps the ends and the middle of each axis.
    """
    base = Setting()
    axes: dict[str, list[Setting]] = {
        "noise": [replace(base, noise=v) for v in (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)],
        "tokens": [replace(base, tokens=v) for v in (8, 16, 32, 48, 64, 128, 256, 512, 1024)],
        "coherence": [replace(base, coherence=v) for v in (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)],
        # At random, so that K p may exceed d.
        "count": [replace(base, coherence=None, count=v) for v in (1, 2, 4, 8, 16, 32)],
        "dim": [replace(base, coherence=None, dim=v) for v in (32, 64, 128, 256, 512)],
        # The space stays filled: K = d / p.
        "size": [replace(base, size=v, count=base.dim // v) for v in (2, 4, 8, 16, 32, 64)],
        "precision": [replace(base, precision=v) for v in (0.01, 0.1, 0.3, 1, 3, 10, 30, 100)],
        "temperature": [replace(base, temperature=v) for v in (0.25, 0.5, 0.7, 1, 1.4, 2, 4)],
    }
    if quick:
        axes = {axis: [all_[0], all_[len(all_) // 2], all_[-1]] for axis, all_ in axes.items()}
    return [(axis, setting) for axis, settings in axes.items() for setting in settings]


def measure(setting: Setting, *, seed: int, num_tokens: int) -> dict[tuple[str, str], float]:
    """{(method, measure): value} of one setting for one seed, over about `num_tokens` tokens.

    They come in sets of `setting.tokens`, at least one set; subspaces are drawn anew for each seed.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = (setting.dim, setting.size, setting.count)
    U = subspaces(*sizes, coherence=setting.coherence, generator=generator)
    wrong = subspaces(*sizes, coherence=setting.coherence, generator=generator)
    mixture = Mixture(bases=U, variance=setting.dim / setting.size, noise=setting.noise)
    num_sets = max(1, num_tokens // setting.tokens)
    tokens = sample_tokens(mixture, num_sets, setting.tokens, generator=generator)
    eps_squared = setting.precision * setting.size * setting.noise**2
    results = _apply(tokens, mixture, wrong, setting.temperature, eps_squared)
    target = results["exact"] - tokens.noisy
    return {
        (method, name): value
        for method, result in results.items()
        for name, value in _judge(result, tokens, U, target, eps_squared).items()
    }


def _apply(
    tokens: Tokens, mixture: Mixture, wrong: Tensor, factor: float, eps_squared: float
) -> dict[str, Tensor]:
    x, U = tokens.noisy, mixture.bases
    tau = factor * matched_temperature(mixture)
    mssa = subspace_attention(x, U, temperature=math.sqrt(U.shape[-1]))
    results = {
        "noisy": x,
        "exact": denoise_exact(x, mixture),
        "projection": project_own(x, U, tokens.labels),
        "shrink": x / (1 + mixture.noise**2),
        "gradient": compression_step(x, U, eps_squared=eps_squared),
        "gradient_wrong": compression_step(x, wrong, eps_squared=eps_squared),
        "mssa": mssa,
        "mssa_residual": x + mssa,
        "mssa_matched": subspace_attention(x, U, temperature=tau),
        "mssa_wrong": subspace_attention(x, wrong, temperature=tau),
        "mssa_limit": attention_limit(x, mixture, temperature=tau),
    }
    assert results.keys() == METHODS.keys()
    return results


def _judge(
    result: Tensor, tokens: Tokens, bases: Tensor, target: Tensor, eps_squared: float
) -> dict[str, float]:
    x, z = tokens.noisy, tokens.clean
    moved = result - x
    noise_energy = (x - z).square().sum()
    length = moved.square().sum()
    # The error is a parabola in the step, so its least value needs no search.
    step = (moved * (z - x)).sum() / length if length > 0 else torch.tensor(0.0)
    w = project(result, bases)
    before = _outside(x, project(x, bases), tokens.labels)
    after = _outside(result, w, tokens.labels)
    energy = result.square().sum(dim=-1)
    scale = (x.square().sum() / energy.sum()).sqrt()
    values = {
        "alignment": F.cosine_similarity(moved, target, dim=-1).mean(),
        "turning": F.cosine_similarity(_turn(moved, x), _turn(target, x), dim=-1).mean(),
        "error": (result - z).square().sum() / noise_energy,
        "best_step": step,
        "best_error": (x + step * moved - z).square().sum() / noise_energy,
        "direction_error": (1 - F.cosine_similarity(result, z, dim=-1).square()).mean(),
        "outside": (after * energy).sum() / energy.sum(),
        # Not counting what rounding does to tokens that were only scaled.
        "toward": (after < before * (1 - 1e-9)).double().mean(),
        "rate": _rate(w, eps_squared),
        "rate_equal_energy": _rate(scale * w, eps_squared),
    }
    assert values.keys() == MEASURES.keys()
    return {name: float(value) for name, value in values.items()}


def _turn(moved: Tensor, tokens: Tensor) -> Tensor:
    """The part of a displacement across its token; 0 where rounding is all there is."""
    along = (moved * tokens).sum(-1, keepdim=True) / tokens.square().sum(-1, keepdim=True)
    across = moved - along * tokens
    rounding = across.norm(dim=-1, keepdim=True) < 1e-9 * moved.norm(dim=-1, keepdim=True)
    return across.masked_fill(rounding, 0.0)


def _outside(tokens: Tensor, coordinates: Tensor, labels: Tensor) -> Tensor:
    """The share (B, N) of each token's energy outside its own subspace, from its coordinates."""
    own = coordinates.square().sum(dim=-1).gather(1, labels[:, None])[:, 0]
    return (1 - own / tokens.square().sum(dim=-1)).clamp(min=0)


def _rate(coordinates: Tensor, eps_squared: float) -> Tensor:
    rates = subspace_coding_rate(coordinates, eps_squared=eps_squared, normalize=False)
    return rates.mean() / coordinates.shape[-2]


def study(
    settings: Sequence[tuple[str, Setting]],
    *,
    seeds: int = 5,
    first_seed: int = 0,
    num_tokens: int = 1024,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Tidy rows: axis, the setting's columns, method, measure, mean, std over seeds, seeds.

    The std is unbiased, None for one seed. Settings shared by several axes are measured once.
    Raises ValueError for numbers below 1.
    """
    if min(seeds, num_tokens) < 1:
        raise ValueError(f"seeds and tokens must be at least 1, not {seeds} and {num_tokens}")
    distinct = dict.fromkeys(setting for _, setting in settings)
    found: dict[Setting, list[dict[tuple[str, str], float]]] = {each: [] for each in distinct}
    for done, setting in enumerate(distinct):
        for seed in range(first_seed, first_seed + seeds):
            found[setting].append(measure(setting, seed=seed, num_tokens=num_tokens))
        if progress is not None:
            progress(done + 1, len(distinct))
    rows: list[dict[str, Any]] = []
    for axis, setting in settings:
        columns = {**asdict(setting)}
        columns["coherence"] = "random" if setting.coherence is None else setting.coherence
        for method, name in found[setting][0]:
            values = torch.tensor([each[method, name] for each in found[setting]]).double()
            spread = float(values.std()) if seeds > 1 else None
            facts = {"method": method, "measure": name, "mean": float(values.mean())}
            rows.append({"axis": axis, **columns, **facts, "std": spread, "seeds": seeds})
    return rows


def write_study(
    rows: Sequence[dict[str, Any]],
    folder: Path,
    *,
    parameters: Mapping[str, Any],
    name: str = "theory",
    methods: Mapping[str, str] = METHODS,
    measures: Mapping[str, str] = MEASURES,
) -> tuple[Path, Path]:
    """The paths of `NAME.csv` and `NAME.json`; both hold every row.

    The JSON also holds the parameters, what methods and measures mean, and the versions used.
    """
    table, record = folder / f"{name}.csv", folder / f"{name}.json"
    with replacing(table) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    facts = environment()
    versions = {key: facts[key] for key in ("crate_mae", "git", "python", "torch", "platform")}
    content = {
        "parameters": dict(parameters),
        "methods": dict(methods),
        "measures": dict(measures),
        "versions": versions,
        "rows": list(rows),
    }
    write_atomically(record, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return table, record


def study_table(rows: Sequence[dict[str, Any]]) -> str:
    """The default setting as aligned text: one line a method, the measures that tell most."""
    shown = ("alignment", "turning", "error", "best_error", "outside", "toward", "rate")
    base = asdict(Setting())
    cells = {
        (row["method"], row["measure"]): row["mean"]
        for row in rows
        if all(row[name] == value for name, value in base.items())
    }
    lines = [
        [method, *(f"{cells[method, name]:.3f}" for name in shown)]
        for method in METHODS
        if (method, shown[0]) in cells
    ]
    size = ", ".join(f"{name} {value:g}" for name, value in base.items() if value is not None)
    return "\n".join([size, *aligned([["", *shown], *lines])])
