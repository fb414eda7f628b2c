"""Foreground without labels, from tokens or from attention, and how well it fits a truth.

No mask looks at the truth. What does (the better of the two sides, the best head) is called oracle.
Shapes: B images of H x W pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crate_mae.dense.attention import AttentionMaps, head_numbers
from crate_mae.dense.layout import Layout, to_pixels
from crate_mae.dense.mixture import RULE, cut_shares
from crate_mae.dense.thresholds import mass_mask, otsu_threshold
from crate_mae.dense.token_maps import TokenMap
from crate_mae.dense.token_pca import find_foreground
from crate_mae.models.mssa import Attention
from crate_mae.models.patches import patchify


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Foreground masks and the scores they were cut from."""

    masks: Tensor
    """(B, H, W) boolean, True = foreground."""
    scores: Tensor
    """(B, H, W) float32, higher = more foreground."""
    rule: str
    """How scores became masks, in words."""
    source: str
    """What was scored: layer, tensor, resolution."""

    def words(self) -> str:
        """What was done, as a caption says it."""
        return f"{self.rule}. Measured on {self.source}."


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Intersection over union of predicted and true foreground, image by image."""

    iou: Tensor
    """(B,) of the masks as predicted."""
    oracle: Tensor
    """(B,) of the better of each mask and its complement, chosen with the truth."""
    everything: Tensor
    """(B,) of calling every pixel foreground: the share of true foreground."""

    def to_dict(self) -> dict[str, Any]:
        """Means and single values, plain for JSON."""
        values = {
            "iou": self.iou,
            "oracle_side_iou": self.oracle,
            "everything_iou": self.everything,
        }
        means = {f"mean_{name}": float(value.mean()) for name, value in values.items()}
        return {**means, **{name: value.tolist() for name, value in values.items()}}


def segment_tokens(
    tokens: TokenMap, *, each: bool = False, quantile: float | None = None, flip: bool = False
) -> Segmentation:
    """Masks from the first principal component of tokens, cut by Otsu's threshold or a quantile.

    Component, threshold and side are found once for all images or, with `each`, for every image by
    itself; the side is the one found less often on the border, or with `flip` the other. Scores
    are interpolated to pixels before they are cut.
    Raises ValueError as `find_foreground`.
    """
    return _cut(tokens.values, tokens.layout, tokens.words(), each, quantile, flip)


def segment_mixture(tokens: TokenMap) -> Segmentation:
    """Masks of the tokens that one of two Gaussians holds, image by image: `foreground_shares`.

    Shares are interpolated to pixels before they are cut. Raises ValueError for tokens that are not
    finite.
    """
    scores = cut_shares(tokens.values, tokens.layout)
    return Segmentation(masks=scores > 0, scores=scores, rule=RULE, source=tokens.words())


def segment_pixels(
    images: Tensor,
    layout: Layout,
    *,
    mixture: bool = False,
    each: bool = False,
    quantile: float | None = None,
    flip: bool = False,
) -> Segmentation:
    """The baseline without a model: `segment_tokens` of the raw pixels (B, C, H, W) of patches.

    With `mixture`, `segment_mixture` of them.
    """
    plain = Layout(
        image_hw=layout.image_hw,
        patch_hw=layout.patch_hw,
        stride=layout.patch_hw,
        trained_hw=layout.trained_hw,
    )
    patches = patchify(images, layout.patch_hw).reshape(len(images), *plain.grid, -1)
    if mixture:
        scores = cut_shares(patches, plain)
        return Segmentation(masks=scores > 0, scores=scores, rule=RULE, source=RAW)
    return _cut(patches, plain, RAW, each, quantile, flip)


RAW = "raw pixels of patches"
NO_ATTENTION = (
    "foreground from attention needs to know where a token attends, and the tokens of this model"
    " attend to none: use the method pca"
)


def check_attends(operator: Attention) -> None:
    """Raise ValueError where an attention operator has no attention of one token to others."""
    if operator.maps != "attention":
        raise ValueError(NO_ATTENTION)


def segment_attention(
    maps: AttentionMaps, *, layer: int = -1, head: int | None = None, mass: float = 0.6
) -> Segmentation:
    """Masks of the pixels that hold `mass` of a query's attention, from one head or the mean head.

    `layer` is a place in `maps.layers`, `head` counts from 0 (None: the mean over heads). The
    attention on patches is interpolated to pixels; the fewest pixels that hold the mass are kept.
    Raises ValueError for a head or mass that does not exist, and for memberships, which are no
    attention of a query.
    """
    if maps.kind != "attention":
        raise ValueError(NO_ATTENTION)
    weights = maps.others[:, layer]
    if head is None:
        chosen, who = weights.mean(dim=1), "mean over heads"
    else:
        (number,) = head_numbers([head], weights.shape[1])
        chosen, who = weights[:, number], f"head {number}"
    scores = to_pixels(chosen, maps.layout, smooth=True).clamp(min=0)
    masks = mass_mask(scores.flatten(1), mass).view_as(scores)
    return Segmentation(
        masks=masks,
        scores=scores,
        rule=f"Foreground: the fewest pixels that hold {mass:.0%} of the attention, {who}",
        source=f"layer {maps.layers[layer]}, {maps.words()}",
    )


def intersection_over_union(predicted: Tensor, truth: Tensor) -> Tensor:
    """The share (B,), float64, of pixels in either mask (B, H, W) that are in both.

    Two empty masks agree: 1. Raises ValueError for masks that are not boolean or differ in shape.
    """
    if predicted.dtype != torch.bool or truth.dtype != torch.bool:
        raise ValueError(f"masks must be boolean, not {predicted.dtype} and {truth.dtype}")
    if predicted.shape != truth.shape or predicted.ndim != 3:
        raise ValueError(
            f"masks must be two of one shape (B, H, W), not {tuple(predicted.shape)} and"
            f" {tuple(truth.shape)}"
        )
    both = (predicted & truth).sum(dim=(1, 2)).double()
    either = (predicted | truth).sum(dim=(1, 2)).double()
    return torch.where(either > 0, both / either, 1.0)


def agreement(masks: Tensor, truth: Tensor, counted: Tensor | None = None) -> Agreement:
    """How masks (B, H, W) fit the truth (B, H, W), with the oracle's choice and a trivial mask.

    Pixels that are not `counted` (B, H, W) are in neither mask. Raises as
    `intersection_over_union`.
    """
    counted = torch.ones_like(truth) if counted is None else counted
    true = truth & counted
    iou = intersection_over_union(masks & counted, true)
    return Agreement(
        iou=iou,
        oracle=torch.maximum(iou, intersection_over_union(~masks & counted, true)),
        everything=intersection_over_union(counted, true),
    )


def centred_ellipse(size: tuple[int, int]) -> Tensor:
    """A mask (H, W), True in an ellipse of the image's proportions that covers half of it.

    The baseline that knows of photographs alone that people centre what they take.
    """
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5 for count in size
    )
    # Half axes of r times the sides cover pi r^2 of the image.
    return rows[:, None].square() + columns.square() <= 0.5 / torch.pi


def segment_brightness(shown: Tensor) -> Segmentation:
    """Masks of images (B, C, H, W) on the [0, 1] scale, cut by Otsu's threshold on brightness.

    The baseline of one number a pixel, the mean over channels, each image by itself; foreground is
    the side found less often on the border. An image of one brightness has no foreground.
    """
    brightness = shown.mean(dim=1)
    masks = torch.zeros_like(brightness, dtype=torch.bool)
    for row, values in enumerate(brightness):
        if values.min() == values.max():
            continue
        mask = values > otsu_threshold(values)
        border = torch.cat([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
        masks[row] = ~mask if border.double().mean() > mask.double().mean() else mask
    return Segmentation(
        masks=masks,
        scores=brightness,
        rule="Foreground: Otsu's threshold, each image by itself, the side less on the border",
        source="brightness",
    )


def _cut(
    values: Tensor, layout: Layout, source: str, each: bool, quantile: float | None, flip: bool
) -> Segmentation:
    groups = [image[None] for image in values] if each else [values]
    margins = []
    rule = ""
    for group in groups:
        foreground = find_foreground(group, quantile=quantile, flip=flip)
        margins.append(foreground.margin(group))
        rule = foreground.rule
    scores = to_pixels(torch.cat(margins), layout, smooth=True)
    together = "each image by itself" if each else f"{len(values)} images together"
    return Segmentation(
        masks=scores > 0, scores=scores, rule=f"Foreground: {rule}, {together}", source=source
    )
