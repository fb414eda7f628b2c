"""Every layer of a model measured on images: one table, in constant memory.

docs/whitebox.md says in plain words what each measure means.
"""

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from crate_mae.batches.prepared import prepared_batches
from crate_mae.common.progress import Progress
from crate_mae.evaluation.backbones import evaluating
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.sources.base import ImageSource
from crate_mae.whitebox.classes import Classes
from crate_mae.whitebox.measures import EPS_SQUARED
from crate_mae.whitebox.mirrors import Mirrors
from crate_mae.whitebox.step_rows import LayerMeter
from crate_mae.whitebox.table import Measurement
from crate_mae.whitebox.weight_rows import weight_measurements

Precision = Literal["float32", "float64"]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What was measured of one model."""

    rows: list[Measurement]
    overlaps: dict[str, list[list[list[float]]]]
    """For "encoder" and "decoder", a K x K matrix of subspace overlaps for every layer."""
    images: int
    unreadable: list[tuple[str, str]]


def analyse(
    model: CrateMAE | CrateEncoder,
    source: ImageSource,
    *,
    name: str = "model",
    eps_squared: float = EPS_SQUARED,
    precision: Precision = "float32",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Analysis:
    """Every measure of every layer, over all readable images of a source, unmasked.

    The model runs in eval mode on its device, in `precision` (a copy of it in float64); measures
    are taken in float64. Memory does not grow with the number of images, labels aside. Raises
    ValueError for a precision or eps^2 that do not exist, when no image can be read, and for tokens
    that are not finite.
    """
    if precision not in get_args(Precision):
        raise ValueError(
            f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}"
        )
    if not 0 < eps_squared < float("inf"):
        raise ValueError(f"eps_squared must be a finite number above 0, not {eps_squared}")
    model = _in_precision(model, precision)
    place = next(model.parameters())
    meter = LayerMeter(name=name, eps_squared=eps_squared, precision=precision)
    mirrors = Mirrors(model, name=name, precision=precision)
    classes = Classes(model, source, name=name, eps_squared=eps_squared, precision=precision)
    images = 0
    broken: list[tuple[str, str]] = []
    with evaluating(model), torch.no_grad():
        for batch in prepared_batches(
            source, model.preprocess, batch_size=batch_size, broken=broken, progress=progress
        ):
            steps = []
            for step in model.half_steps(batch.images.to(place.device, place.dtype)):
                meter.update(step)
                steps.append(step)
            mirrors.update(steps)
            classes.update(steps, batch.labels)
            images += len(batch.images)
    weights, overlaps = weight_measurements(model, name=name, precision=precision)
    return Analysis(
        rows=[*meter.rows(), *classes.rows(), *mirrors.rows(), *weights],
        overlaps=overlaps,
        images=images,
        unreadable=broken,
    )


def _in_precision(model: CrateMAE | CrateEncoder, precision: Precision) -> CrateMAE | CrateEncoder:
    """The model, or a copy where its device or its precision cannot give what is asked for."""
    if next(model.parameters()).device.type == "mps":  # has no float64
        model = copy.deepcopy(model).cpu()
    return copy.deepcopy(model).double() if precision == "float64" else model
