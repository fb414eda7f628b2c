"""What is measured of a half step on images: rates, rank, the MSSA step, the ISTA step.

Symbols are those of docs/model.md: an encoder layer takes z to h (compress) and on to z'
(sparsify), a decoder layer z to y (expand) and on to z' (decompress).
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.models.half_steps import HalfStep
from crate_mae.models.ista import SparseStep
from crate_mae.models.layers import Side
from crate_mae.whitebox import measures
from crate_mae.whitebox.geometry import subspace_bases, subspace_offsets
from crate_mae.whitebox.streaming import RunningMean
from crate_mae.whitebox.table import Measurement

SYMBOLS = {
    ("encoder", "input"): "z",
    ("encoder", "compress"): "h",
    ("encoder", "sparsify"): "z'",
    ("decoder", "input"): "z",
    ("decoder", "expand"): "y",
    ("decoder", "decompress"): "z'",
}
GIVEN = {"encoder": "LN2(h)", "decoder": "LN1(z)"}
"""The tokens that the half step without attention is given."""


@dataclass(frozen=True)
class _Key:
    side: Side
    layer: int
    point: str
    measure: str


@dataclass
class _Cell:
    tensor: str
    eps_squared: float | None
    normalized: bool | None
    values: RunningMean = field(default_factory=RunningMean)


class LayerMeter:
    """Running statistics of every layer, fed half step by half step."""

    def __init__(self, *, name: str, eps_squared: float, precision: str) -> None:
        self.name, self.eps_squared, self.precision = name, eps_squared, precision
        self._cells: dict[_Key, _Cell] = {}
        self._atoms: dict[tuple[Side, int, str], Tensor] = {}

    def update(self, step: HalfStep) -> None:
        """Take in one half step of one batch."""
        if step.is_first:
            self._tokens(step, "input", step.before)
        self._tokens(step, step.name, step.after)
        if step.attends:
            self._compression(step)
        elif step.layer.sparse_step is not None:
            self._sparsification(step, step.layer.sparse_step)

    def rows(self) -> list[Measurement]:
        """The table so far."""
        rows = []
        for key, cell in self._cells.items():
            mean, std = cell.values.mean, cell.values.std
            spread = torch.full_like(mean, torch.nan) if std is None else std
            by_head = mean.ndim > 0
            for head, (value, deviation) in enumerate(
                zip(mean.reshape(-1).tolist(), spread.reshape(-1).tolist(), strict=True)
            ):
                rows.append(
                    Measurement(
                        model=self.name,
                        side=key.side,
                        layer=key.layer,
                        point=key.point,
                        measure=key.measure,
                        head=head if by_head else None,
                        mean=value,
                        std=None if std is None else deviation,
                        images=cell.values.count,
                        tensor=cell.tensor,
                        eps_squared=cell.eps_squared,
                        normalized=cell.normalized,
                        precision=self.precision,
                    )
                )
        return [*rows, *self._atom_rows()]

    def _tokens(self, step: HalfStep, point: str, tokens: Tensor) -> None:
        """Rates and rank of tokens at a point, against the subspaces of the layer."""
        norm = "LN1" if step.side == "encoder" else "LN2"
        words = f"{norm}({SYMBOLS[step.side, point]})"
        x = step.mssa_norm(tokens)
        w = step.mssa.project(x)
        eps = self.eps_squared
        whole = measures.coding_rate(x, eps_squared=eps)
        parts = measures.subspace_coding_rate(w, eps_squared=eps)
        for measure, values, tensor in (
            ("coding_rate", whole, words),
            ("subspace_coding_rate", parts, f"{words} U_k"),
            ("rate_difference", whole - parts, f"{words}, and {words} U_k"),
        ):
            self._record(step, point, measure, values, tensor, eps_squared=eps, normalized=True)
        ranks = measures.effective_rank(w)
        self._record(step, point, "effective_rank", ranks.mean(dim=1), f"{words} U_k, mean over k")
        self._record(step, point, "effective_rank_of_head", ranks, f"{words} U_k")

    def _compression(self, step: HalfStep) -> None:
        """How far MSSA goes against the gradient of R^c, at the tokens it is given."""
        x = step.mssa_norm(step.before)
        words = "LN1(z)" if step.side == "encoder" else "LN2(y)"
        output = step.mssa(x).double()
        bases = subspace_bases(step.mssa)
        w = step.mssa.project(x).double()
        # The rate without normalisation needs an eps^2 of the size of the tokens: relative to the
        # mean squared length of w_k, image by image.
        scale = w.square().sum(dim=-1).mean(dim=(1, 2)).sqrt()[:, None, None]
        scale = torch.where(scale > 0, scale, 1.0)
        x = x.double()
        offsets = subspace_offsets(step.mssa)
        downhill = -measures.compression_gradient(
            x / scale,
            bases,
            eps_squared=self.eps_squared,
            offsets=None if offsets is None else offsets / scale[..., None],
        )
        downhill = downhill / scale
        # What a step of the derivation moves along: an operator may return the step itself.
        shift = output if step.mssa.returns_direction else output - x
        moves = f"MSSA({words})" + ("" if step.mssa.returns_direction else f" - {words}")
        sizes = (output.flatten(1).norm(dim=1), downhill.flatten(1).norm(dim=1))
        note = f"-dR^c/dZ at Z = {words}, eps^2 times the mean |w_k|^2"
        for measure, values, tensor in (
            (
                "mssa_gradient_cosine",
                measures.cosine(output, downhill),
                f"MSSA({words}) with {note}",
            ),
            (
                "mssa_shift_gradient_cosine",
                measures.cosine(shift, downhill),
                f"{moves} with {note}",
            ),
            (
                "shrink_gradient_cosine",
                measures.cosine(-x, downhill),
                f"-{words} with {note}: what mere shrinking reaches",
            ),
            (
                "mssa_gradient_ratio",
                sizes[0] / torch.where(sizes[1] > 0, sizes[1], torch.inf),
                f"|MSSA({words})| over the length of {note}",
            ),
        ):
            self._record(
                step, step.name, measure, values, tensor,
                eps_squared=self.eps_squared, normalized=False,
            )  # fmt: skip

        if step.mssa.maps == "membership":
            shares = step.mssa.membership(x.to(step.before.dtype)).double()
            entropy = -torch.xlogy(shares, shares).sum(dim=1) / math.log(shares.shape[1])
            self._record(
                step, step.name, "membership_entropy", entropy.mean(dim=1),
                f"Pi of {words}: entropy over heads / log K, mean over tokens",
            )  # fmt: skip

    def _sparsification(self, step: HalfStep, operator: SparseStep) -> None:
        """Sparsity of the codes of the tokens x it is given, and what it did to its objective."""
        x, given = step.layer.sparse_norm(step.before), GIVEN[step.side]
        D, weight = operator.dictionary, operator.sparsity
        codes, z = (step.after, "z'") if operator.returns_codes else (operator.codes(x), "a")
        if operator.starts_at_zero:
            begins = ("a = 0", "a = 0")
            feasible = start = x.double().square().sum(dim=-1).mean(dim=-1) / 2
        else:
            begins = ("z = x", "z = ReLU(x)")
            start = measures.lasso_objective(x, x, D, weight)
            feasible = measures.lasso_objective(x.relu(), x, D, weight)
        end = measures.lasso_objective(codes, x, D, weight)
        objective = f"1/2 |x - D {z[0]}|^2 + lambda |{z[0]}|_1 at x = {given}"
        residual = F.linear(codes.double(), D.double())
        for measure, values, tensor in (
            ("zero_fraction", measures.zero_fraction(codes), f"{z} exactly 0"),
            ("nonzero_fraction", 1 - measures.zero_fraction(codes), f"{z} not 0"),
            (
                "small_fraction",
                measures.small_fraction(codes),
                f"{z} up to 1 % of its token's largest",
            ),
            (
                "hoyer_sparsity",
                measures.hoyer_sparsity(codes).mean(dim=1),
                f"{z}, mean over tokens",
            ),
            ("gini_sparsity", measures.gini_sparsity(codes).mean(dim=1), f"{z}, mean over tokens"),
            ("lasso_start", start, f"{objective}, {begins[0]} (where ISTA starts)"),
            ("lasso_start_nonnegative", feasible, f"{objective}, {begins[1]}"),
            ("lasso_end", end, f"{objective}, {z[0]} = {z}"),
            (
                "lasso_fall",
                (start - end) / torch.where(start > 0, start, 1.0),
                f"{objective}: (start - end) / start",
            ),
            (
                "ista_residual",
                measures.relative_error(residual, x),
                f"|D {z} - x| / |x|, x = {given}",
            ),
        ):
            self._record(step, step.name, measure, values, tensor)
        used = (codes != 0).flatten(0, -2).any(dim=0).cpu()
        place = (step.side, step.index, step.name)
        self._atoms[place] = self._atoms.get(place, torch.zeros_like(used)) | used

    def _record(
        self,
        step: HalfStep,
        point: str,
        measure: str,
        values: Tensor,
        tensor: str,
        *,
        eps_squared: float | None = None,
        normalized: bool | None = None,
    ) -> None:
        key = _Key(step.side, step.index, point, measure)
        cell = self._cells.setdefault(key, _Cell(tensor, eps_squared, normalized))
        cell.values.update(values)

    def _atom_rows(self) -> list[Measurement]:
        images = {(key.side, key.layer): cell.values.count for key, cell in self._cells.items()}
        return [
            Measurement(
                model=self.name,
                side=side,
                layer=layer,
                point=point,
                measure="atoms_used",
                mean=float(used.sum()),
                images=images[side, layer],
                tensor=f"entries of the codes that are ever above 0, of {len(used)}",
                precision=self.precision,
            )
            for (side, layer, point), used in self._atoms.items()
        ]
