"""What is measured between layers and between images: mirrored layers, and classes."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from crate_mae.data.prepared import UNLABELLED
from crate_mae.data.sources import ImageSource
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier, pool_tokens
from crate_mae.whitebox.measures import class_rate_reduction, unit_rows
from crate_mae.whitebox.meter import SYMBOLS
from crate_mae.whitebox.streaming import Agreement, ClassMoments
from crate_mae.whitebox.table import Measurement
from crate_mae.whitebox.walk import HalfStep

logger = logging.getLogger(__name__)

CLASS_MEMORY = 1 << 30
"""Bytes that sums by class may take; beyond it only the final features are measured by class."""

_MIRROR = {"input": "sparsify", "expand": "compress", "decompress": "input"}
"""The point of the mirrored encoder layer that a point of a decoder layer should bring back."""


class Mirrors:
    """How well each decoder layer brings back the tokens of the encoder layer that it mirrors.

    Decoder layer m of L mirrors encoder layer L - 1 - m: it should take z' back to h (expand) and
    on to z (decompress). Measured for equal depths only.
    """

    def __init__(
        self,
        model: CrateMAE | CrateClassifier,
        *,
        name: str,
        precision: str,
    ) -> None:
        self.name, self.precision = name, precision
        self.depth = model.config.depth
        self.mirrored = (
            isinstance(model, CrateMAE) and model.config.depth == model.config.decoder_depth
        )
        if isinstance(model, CrateMAE) and not self.mirrored:
            logger.warning(
                "%d encoder and %d decoder layers have no mirror, so inversion is not measured",
                model.config.depth, model.config.decoder_depth,
            )  # fmt: skip
        self._images = 0
        self._found: dict[tuple[int, str], Agreement] = {}

    def update(self, steps: Sequence[HalfStep]) -> None:
        """Nothing; takes in all half steps of one batch."""
        if not self.mirrored:
            return
        self._images += len(steps[0].before)
        tokens = {}
        for step in steps:
            if step.name in ("compress", "expand"):
                tokens[step.side, step.index, "input"] = step.before
            tokens[step.side, step.index, step.name] = step.after
        for layer in range(self.depth):
            for point, twin in _MIRROR.items():
                found = tokens["decoder", layer, point]
                expected = tokens["encoder", self.depth - 1 - layer, twin]
                if (layer, point) not in self._found:
                    self._found[layer, point] = Agreement(found.shape[-1])
                self._found[layer, point].update(found, expected)

    def rows(self) -> list[Measurement]:
        """Agreement at every point of every decoder layer."""
        rows = []
        for (layer, point), agreement in self._found.items():
            own = SYMBOLS["decoder", point]
            twin = SYMBOLS["encoder", _MIRROR[point]]
            for measure, value in (
                ("mirror_cka", agreement.linear_cka()),
                ("mirror_error", agreement.relative_error()),
                ("mirror_error_scaled", agreement.scaled_error()),
            ):
                rows.append(
                    Measurement(
                        model=self.name,
                        side="decoder",
                        layer=layer,
                        point=point,
                        measure=measure,
                        mean=value,
                        images=self._images,
                        tensor=f"{own}, and {twin} of encoder layer {self.depth - 1 - layer}",
                        precision=self.precision,
                    )
                )
        return rows


class Classes:
    """MCR^2's rate reduction between the classes of pooled features, layer by layer.

    With few images a class seems compact whatever its members are. How much of that there is shows
    when the labels of the whole source are dealt out anew among its images: the control.
    """

    def __init__(
        self,
        model: CrateMAE | CrateClassifier,
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
        """Nothing; takes in the codes of every encoder layer and the final features."""
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
