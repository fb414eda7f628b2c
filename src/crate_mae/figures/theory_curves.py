"""Compression beside denoising: a measure along each axis of the experiment, tokens moving."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from crate_mae.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    check_figure_target,
    new_figure,
    save_captioned,
    tidy,
)
from crate_mae.whitebox.denoising import (
    Mixture,
    compression_step,
    denoise_exact,
    matched_temperature,
    project_own,
    sample_tokens,
    subspace_attention,
    subspaces,
)
from crate_mae.whitebox.denoising_study import Setting

# Line by method: (label, colour, dashes, marker).
LINES = {
    "exact": ("exact denoiser", "black", "-", None),
    "shrink": ("shrinking all tokens alike", "black", ":", None),
    "gradient": ("step on $R^c$", BLUE, "-", "o"),
    "gradient_wrong": ("step on $R^c$, wrong subspaces", BLUE, ":", "o"),
    "mssa_matched": ("MSSA, matched temperature", ORANGE, "-", "s"),
    "mssa_wrong": ("MSSA, matched, wrong subspaces", ORANGE, ":", "s"),
    "mssa": (r"MSSA, temperature $\sqrt{p}$", GREEN, "-", "^"),
    "mssa_limit": ("MSSA, matched, infinitely many tokens", GREY, "--", None),
}

# Layer by name: (label, colour, marker).
LAYER_LINES = {
    "thresholded": (r"softmax cut at $\tau$", BLUE, "o"),
    "softmax": ("softmax", ORANGE, "s"),
    "attention_only": ("AoT's layer", GREEN, "^"),
    "gradient": ("step on $R^c$", GREY, "d"),
}

AXES = {
    "noise": r"noise $\sigma$ (noise to signal)",
    "tokens": "tokens in a set $N$",
    "coherence": "coherence (cosine of the angles)",
    "count": "random subspaces $K$",
    "dim": "dimension $d$, random subspaces",
    "size": "subspace dimension $p = d / K$",
    "precision": r"$\epsilon^2 / (p \sigma^2)$",
    "temperature": "softmax temperature / matched",
}

MEASURE_WORDS = {
    "alignment": "cosine with the exact\ndenoiser's displacement",
    "turning": "cosine with the exact\nchange of direction",
    "error": "error / noise",
    "best_error": "error / noise, best step",
    "outside": "energy outside the\ntoken's own subspace",
    "toward": "share of tokens that\nmove toward their own",
}


def draw_theory(
    rows: Sequence[dict[str, Any]], path: str | Path, *, measure: str, overwrite: bool = False
) -> Path:
    """The path of a picture of one measure: a panel for each axis, a line for each method.

    `rows` are those of `denoising_study.study`; bars are one standard deviation over seeds, a grey
    band marks the default. Errors beyond 20 times the noise are cut off. Raises as
    `check_figure_target`, and ValueError when no row has the measure.
    """
    path = check_figure_target(path, overwrite=overwrite)
    mine = [row for row in rows if row["measure"] == measure]
    axes_shown = [axis for axis in AXES if any(row["axis"] == axis for row in mine)]
    if not axes_shown:
        raise ValueError(f"no row has the measure {measure!r} on a known axis")
    columns = min(4, len(axes_shown))
    lines = math.ceil(len(axes_shown) / columns)
    figure = new_figure(3.3 * columns, 2.9 * lines + 0.5)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
    for panel, axis in zip(panels, axes_shown, strict=False):
        _curves(panel, [row for row in mine if row["axis"] == axis], axis)
    for panel in list(panels)[len(axes_shown) :]:
        panel.set_visible(False)
    first = figure.axes[0]
    if measure in ("error", "best_error"):
        first.set_yscale("log")
        if measure == "error":
            first.set_ylim(0.05, 20)
    for panel in figure.axes[::columns]:
        panel.set_ylabel(MEASURE_WORDS.get(measure, measure))
    handles, labels = first.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False
    )
    seeds = max(int(row["seeds"]) for row in mine)
    return save_captioned(
        figure,
        path,
        "Tokens on known subspaces plus noise, one step of each method; mean and standard deviation"
        f" over {seeds} seeds. What is not varied: {_words(Setting())}; grey bands mark these"
        " values.",
    )


def _words(setting: Setting) -> str:
    return (
        f"d = {setting.dim}, K = {setting.count} orthogonal subspaces of p = {setting.size}, N ="
        f" {setting.tokens} tokens a set, noise {setting.noise:g} of the signal"
    )


def _curves(panel: Axes, rows: Sequence[dict[str, Any]], axis: str) -> None:
    for method, (label, colour, dashes, marker) in LINES.items():
        points = sorted(
            (float(row[axis]), row["mean"], row["std"] or 0.0)
            for row in rows
            if row["method"] == method
        )
        if points:
            where, mean, std = zip(*points, strict=True)
            panel.errorbar(
                *(where, mean, std),
                label=label,
                color=colour,
                linestyle=dashes,
                marker=marker,
                linewidth=1.3,
                markersize=3.5,
            )
    if axis != "coherence":
        halves = axis not in ("noise", "precision")
        panel.set_xscale("log", base=2 if halves else 10)
        if halves:
            panel.xaxis.set_major_formatter("{x:g}")
    panel.axvline(getattr(Setting(), axis), color=GREY, linewidth=4, alpha=0.18)
    panel.set_xlabel(AXES[axis])
    tidy(panel)


def draw_theory_moves(path: str | Path, *, seed: int = 0, overwrite: bool = False) -> Path:
    """The path of a picture of single tokens under five denoisers, at the default setting.

    A token is a point: its length within its own subspace to the right, its length outside upwards.
    The best move leads straight down. One that shrinks all tokens alike leads to the corner. The
    arrows of a panel start at the same 40 tokens; those of the third belong to a set of 1,024.
    Raises as `check_figure_target`.
    """
    path = check_figure_target(path, overwrite=overwrite)
    base = Setting()
    generator = torch.Generator().manual_seed(seed)
    U = subspaces(base.dim, base.size, base.count, generator=generator)
    mixture = Mixture(bases=U, variance=base.dim / base.size, noise=base.noise)
    many = sample_tokens(mixture, 1, 1024, generator=generator)
    x, labels = many.noisy[:, : base.tokens], many.labels[:, :40]
    eps_squared = base.size * base.noise**2
    moved = {
        "exact denoiser": denoise_exact(x, mixture),
        f"step on $R^c$, N = {base.tokens}": compression_step(x, U, eps_squared=eps_squared),
        "step on $R^c$, N = 1024": compression_step(many.noisy, U, eps_squared=eps_squared),
        f"MSSA, matched, N = {base.tokens}": subspace_attention(
            x, U, temperature=matched_temperature(mixture)
        ),
        f"MSSA, $\\sqrt{{p}}$, N = {base.tokens}": subspace_attention(
            x, U, temperature=math.sqrt(base.size)
        ),
    }
    figure = new_figure(2.9 * len(moved), 3.6)
    panels = figure.subplots(1, len(moved), sharey=True, sharex=True)
    start = _inside_and_outside(x[:, :40], U, labels)
    for panel, (title, result) in zip(panels, moved.items(), strict=True):
        _arrows(panel, start, _inside_and_outside(result[:, :40], U, labels))
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("length within own subspace")
    panels[0].set_ylabel("length outside")
    return save_captioned(
        figure,
        path,
        f"The same 40 tokens before (points) and after (arrows) one step; {_words(base)}; seed"
        f" {seed}. Straight down is toward the own subspace, to the corner is mere shrinking.",
    )


def draw_theory_layers(
    rows: Sequence[dict[str, Any]], path: str | Path, *, overwrite: bool = False
) -> Path:
    """The path of a picture of signal over noise by layer: a panel a noise, a line a method.

    `rows` are those of `attention_only_study.layer_study`. A dotted line is the theorem's, a
    straight one, as the axis is logarithmic. Raises as `check_figure_target`.
    """
    path = check_figure_target(path, overwrite=overwrite)
    noises = sorted({float(row["noise"]) for row in rows})
    figure = new_figure(3.6 * len(noises), 3.7)
    panels = figure.subplots(1, len(noises), sharey=True, squeeze=False)[0]
    for panel, noise in zip(panels, noises, strict=True):
        mine = [row for row in rows if row["noise"] == noise]
        for method, (label, colour, marker) in LAYER_LINES.items():
            line = [row for row in mine if row["method"] == method]
            panel.plot(
                [row["layer"] for row in line],
                [row["ratio"] for row in line],
                label=label,
                color=colour,
                marker=marker,
                linewidth=1.3,
                markersize=3.5,
            )
        first = mine[0]
        depths = sorted({row["layer"] for row in mine})
        panel.plot(
            depths,
            [first["ratio"] * first["predicted"] ** depth for depth in depths],
            label="theorem",
            color="black",
            linestyle=":",
        )
        panel.set_yscale("log")
        panel.set_title(rf"noise $\delta$ = {noise:g}", fontsize=11)
        panel.set_xlabel("layers")
        tidy(panel)
    panels[0].set_ylabel("signal over noise")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    shape = rows[0]
    return save_captioned(
        figure,
        path,
        f"K = {shape['count']} orthogonal subspaces of p = {shape['size']}, N = {shape['tokens']}"
        f" tokens, eta {shape['step']:g}, tau {shape['threshold']:g}; mean over {shape['seeds']}"
        " seeds.",
    )


def _inside_and_outside(tokens: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    own = project_own(tokens, bases, labels)
    return torch.stack([own.norm(dim=-1), (tokens - own).norm(dim=-1)])[:, 0]


def _arrows(panel: Axes, start: Tensor, end: Tensor) -> None:
    inside, outside = start.numpy()
    panel.scatter(inside, outside, s=9, color=GREY, linewidths=0)
    panel.quiver(
        *(inside, outside),
        *(end - start).numpy(),
        angles="xy",
        scale_units="xy",
        scale=1,
        color=BLUE,
        width=0.005,
        headwidth=5,
    )
    panel.set_xlim(0, 21)
    panel.set_ylim(-0.5, 13)
    tidy(panel)
