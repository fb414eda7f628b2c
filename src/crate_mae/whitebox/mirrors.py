"""How well the decoder's layers bring back what the encoder's did to the tokens."""

import logging
from collections.abc import Sequence

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.half_steps import HalfStep
from crate_mae.whitebox.step_rows import SYMBOLS
from crate_mae.whitebox.streaming import Agreement
from crate_mae.whitebox.table import Measurement

logger = logging.getLogger(__name__)

_MIRROR = {"input": "sparsify", "expand": "compress", "decompress": "input"}
"""The point of the mirrored encoder layer that a point of a decoder layer should bring back."""


class Mirrors:
    """How well each decoder layer brings back the tokens of the encoder layer that it mirrors.

    Decoder layer m of L mirrors encoder layer L - 1 - m: it should take z' back to h (expand) and
    on to z (decompress). Measured for equal depths only.
    """

    def __init__(
        self,
        model: CrateMAE | CrateEncoder,
        *,
        name: str,
        precision: str,
    ) -> None:
        self.name, self.precision = name, precision
        self.depth = model.config.depth
        has_decoder = "decoder" in model.stacks
        self.mirrored = has_decoder and model.config.depth == model.config.decoder_depth
        if has_decoder and not self.mirrored:
            logger.warning(
                "%d encoder and %d decoder layers have no mirror, so inversion is not measured",
                model.config.depth, model.config.decoder_depth,
            )  # fmt: skip
        self._images = 0
        self._found: dict[tuple[int, str], Agreement] = {}

    def update(self, steps: Sequence[HalfStep]) -> None:
        """Take in all half steps of one batch."""
        if not self.mirrored:
            return
        self._images += len(steps[0].before)
        tokens = {}
        for step in steps:
            if step.is_first:
                tokens[step.side, step.index, "input"] = step.before
            tokens[step.side, step.index, step.name] = step.after
        for layer in range(self.depth):
            for point, mirror in _MIRROR.items():
                found = tokens["decoder", layer, point]
                expected = tokens["encoder", self.depth - 1 - layer, mirror]
                if (layer, point) not in self._found:
                    self._found[layer, point] = Agreement(found.shape[-1])
                self._found[layer, point].update(found, expected)

    def rows(self) -> list[Measurement]:
        """Agreement at every point of every decoder layer."""
        rows = []
        for (layer, point), agreement in self._found.items():
            own = SYMBOLS["decoder", point]
            mirror = SYMBOLS["encoder", _MIRROR[point]]
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
                        tensor=f"{own}, and {mirror} of encoder layer {self.depth - 1 - layer}",
                        precision=self.precision,
                    )
                )
        return rows
