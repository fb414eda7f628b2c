"""Frozen features of images: extracted once, measured as often as wanted by the other modules.

Nothing is masked and nothing is random.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from crate_mae.batches.prepared import UNLABELLED, followed, source_stretches, stretches
from crate_mae.common.progress import Progress
from crate_mae.evaluation.backbones import Layers, checked_layers, evaluating
from crate_mae.evaluation.encoding import Encode, Encoded, Key, encoded, encoded_stretches
from crate_mae.models.backbone import Backbone
from crate_mae.models.config import Preprocess
from crate_mae.models.pools import places_of, pooled
from crate_mae.sources.base import ImageSource, Source

FeaturePool = Literal["mean", "cls", "mean-all", "both", "mean-std", "layers", "tokens"]
MAX_PIXEL_VALUES = 4096
"""Values of an image in the raw-pixel baseline, at most: 64 x 64 of grey, 36 x 36 of colour."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """One row of features per readable image, in the order of the source."""

    values: Tensor
    """(n, d) float32; (n, 1 + L, d) for all tokens."""
    labels: Tensor | None
    """(n,) int64, -1 where a single image has no label; None when none has one."""
    names: list[str]
    """One per row."""
    class_names: tuple[str, ...] | None
    pool: str
    """What a row is: a pool of tokens (`models.pools.pooled`), or "pixels"."""
    unreadable: list[tuple[str, str]]
    """Name and reason of every image that was skipped."""
    layer: int | None = None
    """How many encoder layers the tokens have passed; None: all, and the final norm."""


def extract_features(
    model: Backbone,
    source: Source,
    *,
    pool: FeaturePool = "mean",
    layer: int | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features of every readable image of a source, prepared as the model's training images were.

    One `pool` and `layer` of what `extract_all` returns; see there.
    """
    found = extract_all(
        model,
        source,
        pools=(pool,),
        layers=(layer,),
        batch_size=batch_size,
        device=device,
        workers=workers,
        progress=progress,
    )
    return next(iter(found.values()))


def extract_all(
    model: Backbone,
    source: Source,
    *,
    pools: Sequence[FeaturePool] = ("mean",),
    layers: Layers = (None,),
    batch_size: int = 256,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[Key, Features]:
    """Features {(layer, pool): rows} of a source for every asked layer and pool, in one pass.

    A layer is the number of encoder layers that the tokens have passed, 0 to the depth, without
    the final norm; None or -1 is the default: all layers and the final norm; "all" is everything.
    Deterministic. The model runs in eval mode where it is, or is moved to `device` first; its
    training flags are put back. `progress` hears how many of how many images are done.
    On a CPU a process a core reads and computes where that is faster (`encoded_stretches`); so many
    `workers`, when given, read images while others are computed. The features are the same.
    Raises ValueError for an unknown pool or layer and when no image can be read.
    """
    encode = pooled_features(model, pools=pools, layers=layers)
    if device is not None:
        model.to(device)
    if isinstance(source, ImageSource):
        cuts = stretches(range(len(source)), batch_size)
        read = encoded_stretches(model, source, encode, cuts, workers=workers)
    else:
        read = _in_turn(source, model.preprocess, encode, batch_size)
    with evaluating(model):
        found = _collect(source, read, progress)
    wanted = checked_layers(model, layers)
    return {(i, pool): _part(found, i, pool) for i in wanted for pool in pools}


def pooled_features(model: Backbone, *, pools: Sequence[FeaturePool], layers: Layers) -> Encode:
    """A function that gives the rows {(layer, pool): (B, ...)} of prepared images (B, C, H, W).

    They are float32 on the CPU, whatever the model is and wherever it lies. Where "both" is asked
    for, "cls" and "mean" are halves of it and not given. The model should be in eval mode.
    Raises ValueError for an unknown pool or layer.
    """
    unknown = [pool for pool in pools if pool not in get_args(FeaturePool)]
    if unknown or not pools:
        names = ", ".join(get_args(FeaturePool))
        raise ValueError(f"pool must be one of {names}, not {unknown[0] if unknown else pools!r}")
    wanted = checked_layers(model, layers)
    # The class token and the mean are halves of both: one memory holds all three.
    kept = [pool for pool in pools if "both" not in pools or pool not in ("cls", "mean")]
    places = {
        (layer, pool): places_of(pool, layer, model.config.depth)
        for layer in wanted
        for pool in kept
    }
    needed = checked_layers(model, [place for each in places.values() for place in each])

    def encode(images: Tensor) -> dict[Key, Tensor]:
        device = next(model.parameters()).device  # of an exported encoder: its original's
        with torch.inference_mode():
            states = model.layer_tokens(images.to(device), needed)
            return {
                key: pooled([states[place] for place in each], key[1]).float().cpu()
                for key, each in places.items()
            }

    return encode


def _part(found: dict[Key, Features], layer: int | None, pool: str) -> Features:
    if (layer, pool) in found:
        return found[layer, pool]
    both = found[layer, "both"]
    return replace(both, values=both.values.chunk(2, dim=1)[pool == "mean"], pool=pool)


def raw_pixels(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Features:
    """The prepared pixels themselves as features (n, C*H*W): the baseline that needs no model.

    Raises ValueError when no image can be read.
    """
    key = (None, "pixels")
    read = _in_turn(source, preprocess, lambda images: {key: images.flatten(1)}, batch_size)
    return _collect(source, read, progress)[key]


def reduced(preprocess: Preprocess) -> Preprocess:
    """The same for images of at most `MAX_PIXEL_VALUES` values, for `raw_pixels`.

    A linear classifier of many more takes minutes, and on the sets where that was tried it was no
    better for them. Smaller images stay as they are; larger ones keep their shape.
    """
    height, width = preprocess.size
    share = (MAX_PIXEL_VALUES / (preprocess.channels * height * width)) ** 0.5
    if share >= 1:
        return preprocess
    return replace(preprocess, size=(max(1, int(height * share)), max(1, int(width * share))))


def _in_turn(
    source: Source, preprocess: Preprocess, encode: Encode, batch_size: int
) -> Iterator[Encoded]:
    for stretch in source_stretches(source, preprocess, batch_size=batch_size):
        yield encoded(stretch, preprocess, encode)


def _collect(
    source: Source, read: Iterator[Encoded], progress: Progress | None
) -> dict[Key, Features]:
    total = len(source)
    values: dict[Key, Tensor] = {}
    filled = 0
    names: list[str] = []
    labels: list[int] = []
    unreadable: list[tuple[str, str]] = []
    for stretch in followed(read, source, broken=unreadable, progress=progress):
        if not filled:  # one allocation: joining pieces at the end would need twice the memory
            values = {
                key: torch.empty((total, *row.shape[1:])) for key, row in stretch.rows.items()
            }
        for key, row in stretch.rows.items():
            values[key][filled : filled + len(row)] = row
        filled += len(stretch.names)
        names += stretch.names
        labels += stretch.labels
    joined = torch.tensor(labels)
    known = joined if bool((joined != UNLABELLED).any()) else None
    return {
        (layer, pool): Features(
            values=whole[:filled],
            labels=known,
            names=names,
            class_names=source.class_names,
            pool=pool,
            unreadable=unreadable,
            layer=layer,
        )
        for (layer, pool), whole in values.items()
    }
