"""How far classes are apart after every half step."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from crate_mae.batches.prepared import UNLABELLED
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.half_steps import HalfStep
from crate_mae.models.pools import pool_tokens
from crate_mae.sources.base import ImageSource
from crate_mae.whitebox.measures import class_rate_reduction, unit_rows
from crate_mae.whitebox.streaming import ClassMoments
from crate_mae.whitebox.table import Measurement

logger = logging.getLogger(__name__)

CLASS_MEMORY = 1 << 30
"""Bytes that sums by class may take; beyond it only the final features are measured by class."""


class Classes:
    """MCR^2's rate reduction between the classes of pooled features, layer by layer.

    With few images a class seems compact whatever its members are. How much of that there is shows
    when the labels of the whole source are dealt out anew among its images: the control.
    """

    def __init__(
        self,
        model: CrateMAE | CrateEncoder,
        source: ImageSource,
        *,
        name: str,
        eps_squared: float,
        precision: str,
    ) -> None:
        self.name, self.eps_squared, self.precision = name, eps_squared, precision
        self.norm, self.depth = model.encoder.norm, model.config.depth
        count, dim = len(source.class_names or ()), model.config.dim
        layers = list(range(self.depth + 1)) if count else []
        needed = 2 * ClassMoments.bytes_for(count, dim)
        if needed * len(layers) > CLASS_MEMORY:
            layers = [self.depth] if needed <= CLASS_MEMORY else []
            logger.warning(
                "sums of %d classes of width %d take %.1f GiB a layer: rate reduction between"
                " classes is measured for %s",
                count, dim, needed / 2**30, "the final features only" if layers else "no layer",
            )  # fmt: skip
        self._sums = {layer: ClassMoments(count, dim) for layer in layers}
        self._control = {layer: ClassMoments(count, dim) for layer in layers}
        every = [source.label(index) for index in range(len(source))] if layers else []
        known = torch.tensor([label for label in every if label is not None], dtype=torch.int64)
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        self._dealt, self._given = known[order], 0

    def update(self, steps: Sequence[HalfStep], labels: Tensor) -> None:
        """Take in the codes of every encoder layer and the final features."""
        codes = [step.after for step in steps if step.name == "sparsify"]
        # Images without a label get none here either: both are measured on the same images.
        dealt, labelled = labels.clone(), labels != UNLABELLED
        if self._sums:
            until = self._given + int(labelled.sum())
            dealt[labelled] = self._dealt[self._given : until]
            self._given = until
        for layer, sums in self._sums.items():
            tokens = codes[layer] if layer < self.depth else self.norm(codes[-1])
            features = unit_rows(pool_tokens(tokens, "mean"))
            sums.update(features, labels)
            self._control[layer].update(features, dealt)

    def rows(self) -> list[Measurement]:
        """Delta R, its control and its two parts for every layer, when any image had a label."""
        rows = []
        for layer, sums in self._sums.items():
            images = int(sums.counts.sum())
            if not images:
                continue
            final = layer == self.depth
            found, control = (
                class_rate_reduction(part.moments, part.counts, eps_squared=self.eps_squared)
                for part in (sums, self._control[layer])
            )
            for measure, value in (
                ("class_rate_reduction", found[0]),
                ("class_rate_reduction_dealt", control[0]),
                ("rate_of_all_classes", found[1]),
                ("rate_within_classes", found[2]),
            ):
                rows.append(
                    Measurement(
                        model=self.name,
                        side="encoder",
                        layer=layer,
                        point="features" if final else "sparsify",
                        measure=measure,
                        mean=value,
                        images=images,
                        tensor="mean patch token of " + ("the features" if final else "z'"),
                        eps_squared=self.eps_squared,
                        normalized=True,
                        precision=self.precision,
                    )
                )
        return rows
