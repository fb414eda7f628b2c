"""Many layers of attention alone on known subspaces: what each does to signal over noise.

Tokens are those of AoT's theorem ("Attention-Only Transformers via Unrolled Subspace Denoising",
arXiv 2506.03790): z = U_k a + sum_{j != k} U_j e_j with a ~ N(0, I_p) and e_j ~ N(0, delta^2 I_p),
for K orthogonal subspaces that fill the space. docs/theory.md tells what comes out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.common.text_tables import aligned
from crate_mae.whitebox.attention_only import signal_to_noise, thresholded_step
from crate_mae.whitebox.denoising import compression_step, subspace_attention, subspaces

LAYERS = {
    "thresholded": "z + eta sum_k phi(w_k w_k^T) w_k U_k^T, phi the softmax cut at tau (theorem)",
    "softmax": "the same with the softmax itself",
    "attention_only": "z + eta MSSA(LN(z)), tied, softmax temperature sqrt(p): the layer of AoT",
    "gradient": "z - kappa dR^c/dz, eps^2 = p delta^2",
}
"""What is applied again and again, by name."""

MEASURED = {
    "ratio": "|U_k U_k^T Z_k|_F / |(I - U_k U_k^T) Z_k|_F after so many layers, mean over k",
    "std": "its standard deviation over seeds",
    "factor": "the ratio over that of one layer before, mean over seeds",
    "predicted": "1 + eta tau, which the theorem says of thresholded layers",
}
"""What the rows hold, by column."""


@dataclass(frozen=True, kw_only=True)
class LayerSetting:
    """One cell of the experiment. Raises ValueError for values that cannot be."""

    size: int = 32
    """p, the dimension of every subspace."""
    count: int = 4
    """K, how many there are; the space has K p dimensions."""
    tokens: int = 256
    """N, tokens in the set."""
    noise: float = 0.1
    """delta, the standard deviation of a token in each direction of the other subspaces."""
    step: float = 0.5
    """eta."""
    threshold: float = 0.6
    """tau."""

    def __post_init__(self) -> None:
        for name in ("size", "tokens", "noise", "step"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, not {value}")
        if self.count < 2:
            raise ValueError(f"count must be at least 2, for noise to come from, not {self.count}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, not {self.threshold}")

    @property
    def predicted(self) -> float:
        """1 + eta tau: by the theorem each `thresholded` layer multiplies the ratio by it."""
        return 1 + self.step * self.threshold

    @property
    def first(self) -> float:
        """1 / (delta sqrt(K - 1)), to which the ratio of the tokens themselves tends."""
        return 1 / (self.noise * math.sqrt(self.count - 1))


def layer_settings() -> list[LayerSetting]:
    """The settings of `crate-mae theory`: three levels of noise."""
    return [LayerSetting(noise=noise) for noise in (0.05, 0.1, 0.2)]


def theorem_tokens(
    setting: LayerSetting, *, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N, d), the subspace of each (N,) and the bases (K, d, p), float64.

    Labels go round, so that every subspace has as many tokens, or one more.
    """
    size, count, number = setting.size, setting.count, setting.tokens
    bases = subspaces(size * count, size, count, generator=generator)
    labels = torch.arange(number) % count
    w = torch.randn(count, number, size, generator=generator, dtype=torch.float64)
    own = labels == torch.arange(count)[:, None]  # (K, N)
    w *= torch.where(own, 1.0, setting.noise)[..., None]
    return torch.einsum("knp,kdp->nd", w, bases), labels, bases


def _step(name: str, setting: LayerSetting, bases: Tensor) -> Callable[[Tensor], Tensor]:
    eta = setting.step
    if name == "thresholded":
        return lambda z: thresholded_step(z, bases, step=eta, threshold=setting.threshold)
    if name == "softmax":
        return lambda z: z + eta * subspace_attention(z, bases, temperature=1.0)
    if name == "attention_only":
        heat = math.sqrt(setting.size)
        return lambda z: (
            z + eta * subspace_attention(F.layer_norm(z, z.shape[-1:]), bases, temperature=heat)
        )
    eps_squared = setting.size * setting.noise**2
    return lambda z: compression_step(z, bases, eps_squared=eps_squared)


def ratios_by_layer(name: str, setting: LayerSetting, *, layers: int, seed: int) -> list[float]:
    """The ratio of signal to noise, mean over subspaces, before and after each of `layers` layers.

    Raises ValueError for a name that is none of `LAYERS`.
    """
    if name not in LAYERS:
        raise ValueError(f"layers must be of {', '.join(LAYERS)}, not {name!r}")
    generator = torch.Generator().manual_seed(seed)
    tokens, labels, bases = theorem_tokens(setting, generator=generator)
    step, found, z = _step(name, setting, bases), [], tokens[None]
    for _ in range(layers + 1):
        found.append(float(signal_to_noise(z[0], labels, bases).mean()))
        z = step(z)
    return found


def layer_study(
    settings: Sequence[LayerSetting], *, layers: int = 8, seeds: int = 5, first_seed: int = 0
) -> list[dict[str, Any]]:
    """Tidy rows: the setting's columns, layers passed, method, ratio, factor, std, seeds.

    `ratio` is the mean over seeds of signal to noise after so many layers, `factor` that over the
    ratio one layer before (None before the first), `predicted` what the theorem says it is for
    `thresholded`. The std is unbiased, of the ratio; None for one seed.
    Raises ValueError for numbers below 1.
    """
    if min(layers, seeds) < 1:
        raise ValueError(f"layers and seeds must be at least 1, not {layers} and {seeds}")
    rows: list[dict[str, Any]] = []
    for setting in settings:
        for name in LAYERS:
            found = torch.tensor(
                [
                    ratios_by_layer(name, setting, layers=layers, seed=first_seed + seed)
                    for seed in range(seeds)
                ],
                dtype=torch.float64,
            )
            factors = (found[:, 1:] / found[:, :-1]).mean(dim=0).tolist()
            spread = found.std(dim=0).tolist() if seeds > 1 else [None] * (layers + 1)
            for layer, ratio in enumerate(found.mean(dim=0).tolist()):
                rows.append(
                    {
                        **asdict(setting),
                        "layer": layer,
                        "method": name,
                        "ratio": ratio,
                        "std": spread[layer],
                        "factor": None if layer == 0 else factors[layer - 1],
                        "predicted": setting.predicted,
                        "seeds": seeds,
                    }
                )
    return rows


def layer_table(rows: Sequence[dict[str, Any]]) -> str:
    """Factors on signal over noise as aligned text: a line a noise and method, a column a layer."""
    layers = sorted({row["layer"] for row in rows if row["layer"] > 0})
    lines: list[list[str]] = []
    for noise, method in dict.fromkeys((row["noise"], row["method"]) for row in rows):
        mine = {r["layer"]: r for r in rows if (r["noise"], r["method"]) == (noise, method)}
        factors = [f"{mine[layer]['factor']:.3f}" for layer in layers]
        lines.append([f"delta {noise:g} {method}", f"{mine[0]['ratio']:.2f}", *factors])
    head = ["", "ratio at first", *(f"layer {layer}" for layer in layers)]
    said = f"signal over noise, times so much a layer; by the theorem {rows[0]['predicted']:g}"
    return "\n".join([said, *aligned([head, *lines])])
