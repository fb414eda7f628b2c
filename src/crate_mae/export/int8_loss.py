"""What rounding a model to eight bits costs: the accuracy of a linear probe before and after."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crate_mae.common.progress import Progress
from crate_mae.evaluation.features import extract_features
from crate_mae.evaluation.probe import linear_probe
from crate_mae.export.engines import ExportedEncoder
from crate_mae.export.exported_facts import read_facts
from crate_mae.sources.address import open_pair
from crate_mae.sources.base import ImageSource
from crate_mae.weights.weights_folder import load_model, weights_hash


@dataclass(frozen=True, kw_only=True)
class Int8Loss:
    """Accuracies of a linear probe on features of both precisions."""

    address: str
    """Where images and labels come from."""
    tested: int
    """How many images were classified."""
    float32: float
    """Accuracy in float32, from 0 to 1."""
    int8: float
    """Accuracy in eight bits."""
    trained_on: str
    """Address and split of the images that both probes learnt from."""
    tested_on: str
    """Address and split of the images that were classified."""
    pool: str
    """What was kept of each image's tokens."""
    layer: int | None
    """The layer that features were taken after; None for the last one."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def sentence(self) -> str:
        """Both accuracies in a line."""
        return (
            f"linear probe on {self.address}, {self.tested} test images: float32"
            f" {self.float32:.2%}, int8 {self.int8:.2%}"
        )


def measure_int8_loss(
    weights: str | Path,
    folder: Path,
    address: str,
    *,
    progress: Callable[[str], Progress | None] | None = None,
) -> Int8Loss:
    """What a linear probe makes of weights and of the int8 model in a folder.

    `address` names labelled data, a part of which is held out where it has no test split. Both
    probes are fitted anew, on features of their own precision. Raises ValueError for a folder that
    holds no int8 model of these weights, and what `load_exported` and `open_pair` raise.
    """
    if not read_facts(folder).int8:
        raise ValueError(
            f"{folder} holds a model in float32, not in eight bits: export it with --int8"
        )
    model = load_model(weights)
    rounded_model = ExportedEncoder(model, folder, weights_sha256=weights_hash(weights))
    train, test = open_pair(address)
    scores = []
    for subject, name in ((model, "float32"), (rounded_model, "int8")):
        rows = [
            extract_features(
                subject,
                part,
                batch_size=64,
                progress=None if progress is None else progress(f"features, {name}"),
            )
            for part in (train, test)
        ]
        scores.append(linear_probe(rows[0], rows[1]))
    whole, rounded = scores
    return Int8Loss(
        address=address,
        tested=whole.num_test,
        float32=whole.accuracy,
        int8=rounded.accuracy,
        trained_on=_named(train),
        tested_on=_named(test),
        pool=rows[0].pool,
        layer=rows[0].layer,
    )


def _named(source: ImageSource) -> str:
    return " ".join(filter(None, (source.address, source.split)))
