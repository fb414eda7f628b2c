"""Reconstructions on the pixel scale, with the way back to pixels named, and trivial predictors.

Shapes: B images (C, H, W), L patches of h x w pixels, P = h*w*C values of a patch.
Masks are boolean (B, L), True = removed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from crate_mae.batches.transforms import ROUNDING, denormalise, fit, prepare, value_range
from crate_mae.common.files import user_path
from crate_mae.common.randomness import keyed_generator
from crate_mae.evaluation.backbones import evaluating
from crate_mae.models.backbone import MaskedAutoencoder
from crate_mae.models.config import ModelConfig
from crate_mae.models.masks import MaskKind, draw_mask, mask_from_pixels, num_kept
from crate_mae.models.patches import grid_of, patchify, unpatchify
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import UnreadableImage, decode_image, to_channels

logger = logging.getLogger(__name__)

PixelMode = Literal["visible", "oracle", "raw"]

MASK_GREY = 0.5
DISPLAY_DEVIATIONS = 2.5
"""Normalised values from minus to plus this many standard deviations are shown black to white."""

_CAPTIONS = {
    "visible": "Patches were predicted normalised; mean and contrast of each removed patch are"
    " estimated from visible patches only.",
    "oracle": "Patches were predicted normalised; mean and contrast of each removed patch"
    " are the true ones, taken from the removed pixels themselves.",
    "raw": "Pixels were predicted directly.",
}
_NORMALISED_CAPTION = (
    "Normalised predictions, rescaled for display: mid-grey is the patch's mean, black to white"
    f" -{DISPLAY_DEVIATIONS} to +{DISPLAY_DEVIATIONS} of its standard deviations. Not comparable"
    " with pixels, so without MSE and PSNR."
)


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Masked images and what a model made of them: float32 on the CPU, clipped to [0, 1].

    0 is the lowest value of the images and 1 the highest, `low` and `high`: 0 and 1 themselves for
    8-bit images, for others what the model was trained on, or more where these images go further.
    """

    original: Tensor
    """(B, C, H, W)"""
    masked: Tensor
    """(B, C, H, W), removed patches mid-grey."""
    prediction: Tensor
    """(B, C, H, W), every patch as predicted; visible ones are not trained for."""
    pasted: Tensor
    """(B, C, H, W), the prediction where patches were removed, the original elsewhere."""
    error: Tensor
    """(B, 1, H, W), absolute error of `pasted`, mean over channels: 0 where patches are visible."""
    mask: Tensor
    """(B, L) boolean, True = removed."""
    mse: Tensor
    """(B,) mean squared error of `prediction` over the removed patches, in the units of the data
    (of the range, where channels have different ones); nan in normalised units and where nothing
    was removed."""
    psnr: Tensor
    """(B,) peak signal-to-noise ratio in dB that belongs to `mse`; the peak is `high - low`."""
    mode: PixelMode
    """How predictions became pixels."""
    caption: str
    """The same in a sentence, for under the picture."""
    low: tuple[float, ...] = (0.0,)
    """(C,) values of the data that are drawn black."""
    high: tuple[float, ...] = (1.0,)
    """(C,) values of the data that are drawn white."""

    @property
    def unit_range(self) -> bool:
        """Whether black and white are 0 and 1 in every channel."""
        return {*self.low} == {0.0} and {*self.high} == {1.0}

    @property
    def units(self) -> str:
        """What `mse` counts in, as a caption says it."""
        if self.unit_range:
            return "pixels from 0 to 1"
        if len({*self.low}) > 1 or len({*self.high}) > 1:
            return "each channel from its lowest value, 0, to its highest, 1"
        return f"values from {self.low[0]:.4g} to {self.high[0]:.4g}"


def reconstruct(
    model: MaskedAutoencoder, images: Tensor, mask: Tensor, *, mode: PixelMode | None = None
) -> Reconstruction:
    """What the model makes of prepared images (B, C, H, W) under a mask (B, L).

    A model trained with `norm_pix_loss` predicts each patch up to its mean and contrast, and `mode`
    says where these come from: "visible" (the default: estimated from visible patches), "oracle"
    (the true ones) or "raw" (nowhere: the prediction itself is shown). Visible patches always use
    their own. Any other model predicts pixels, and "raw" is the only mode.

    Raises ValueError for a mode that the model does not have, and for images or masks that do not
    fit the model or, in mode "visible", leave no patch to estimate from.
    """
    return _finished([_completed(model, images, mask, mode)], model)


@dataclass(frozen=True, kw_only=True)
class _Completed:
    """A batch as the model completed it, in the units of the data and unclipped.

    In normalised units prediction and truth are on the display scale instead.
    """

    original: Tensor
    prediction: Tensor
    truth: Tensor
    removed: Tensor
    mask: Tensor
    mode: PixelMode


def _completed(
    model: MaskedAutoencoder, images: Tensor, mask: Tensor, mode: PixelMode | None
) -> _Completed:
    normalised = model.config.norm_pix_loss
    mode = _checked_mode(mode, normalised)
    place = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        predicted = model(images.to(place), mask.to(place)).prediction.float().cpu()
    images, mask, patch_hw = images.float().cpu(), mask.cpu(), model.config.patch_hw

    def as_image(patches: Tensor, channels: int = model.config.channels) -> Tensor:
        return unpatchify(patches, patch_hw, grid_of(images, patch_hw), channels)

    original = denormalise(images, model.preprocess)
    if normalised and mode == "raw":
        prediction = _displayed(as_image(predicted))
        truth = _displayed(as_image(model.target(images)))
    else:
        if normalised:
            mean, spread = patch_statistics(images, patch_hw)
            if mode == "visible":
                mean, spread = _from_visible(mean, spread, mask, images, patch_hw)
            predicted = predicted * spread + mean
        prediction, truth = denormalise(as_image(predicted), model.preprocess), original
    pixels = patch_hw[0] * patch_hw[1]
    return _Completed(
        original=original,
        prediction=prediction,
        truth=truth,
        removed=as_image(mask[..., None].expand(-1, -1, pixels), channels=1),
        mask=mask,
        mode=mode,
    )


def _finished(parts: list[_Completed], model: MaskedAutoencoder) -> Reconstruction:
    """The batches as one, on one scale from the lowest to the highest value of all of them."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    mode, removed = parts[0].mode, joined("removed")
    in_units = not (model.config.norm_pix_loss and mode == "raw")
    original, prediction, truth = joined("original"), joined("prediction"), joined("truth")
    # Removed pixels have no part in how the others are shown.
    low, high = value_range(original, model.preprocess, ~removed)
    original = (original - low) / (high - low)
    shown = original.clamp(0, 1)
    outside = (original - shown).abs() > ROUNDING
    if in_units:  # errors count what lies outside; rounding is none
        truth = torch.where(outside, original, shown)
        prediction = ((prediction - low) / (high - low)).clamp(0, 1)
    original, share = shown, float(outside.double().mean())
    difference = torch.where(removed, prediction - truth, 0)
    squares = difference.double().square().mean(dim=1).sum(dim=(1, 2))
    mse = (squares / removed.sum(dim=(1, 2, 3))).float()
    if not in_units:
        mse = torch.full_like(mse, torch.nan)
    lows, highs = low.flatten().tolist(), high.flatten().tolist()
    alike = len({*lows}) == len({*highs}) == 1
    return Reconstruction(
        original=original,
        masked=torch.where(removed, MASK_GREY, original),
        prediction=prediction,
        pasted=torch.where(removed, prediction, original),
        error=difference.abs().mean(dim=1, keepdim=True),
        mask=joined("mask"),
        mse=mse * (highs[0] - lows[0]) ** 2 if alike else mse,
        psnr=psnr(mse),
        mode=mode,
        caption=(_CAPTIONS[mode] if in_units else _NORMALISED_CAPTION)
        + (f" {share:.1%} of the values lie outside the range that is drawn." if share else ""),
        low=tuple(lows),
        high=tuple(highs),
    )


def reconstruct_source(
    model: MaskedAutoencoder,
    source: ImageSource,
    *,
    kind: MaskKind = "random",
    ratio: float = 0.75,
    seed: int = 0,
    mask: Tensor | None = None,
    mode: PixelMode | None = None,
    limit: int | None = None,
    batch_size: int = 32,
) -> tuple[Reconstruction, list[str]]:
    """Reconstructions and names of the readable images of a source, the first `limit` of them.

    Each image's mask depends on `seed` and its place in the source alone, unless one `mask` (1, L)
    is given for all. Unreadable images are passed over with a warning in the log.
    Raises ValueError as `reconstruct`, and when no image can be read.
    """
    images, masks, names = [], [], []
    parts: list[_Completed] = []
    mode = _checked_mode(mode, model.config.norm_pix_loss)
    grid = grid_of(torch.empty(0, *model.preprocess.size), model.config.patch_hw)
    count = len(source) if limit is None else min(limit, len(source))
    for index in range(count):
        try:
            sample = source.load(index)
        except UnreadableImage as error:
            logger.warning("passed over: %s", error)
        else:
            images.append(to_channels(sample.image, model.preprocess.channels))
            masks.append(
                draw_mask(kind, grid, ratio, keyed_generator(seed, index)) if mask is None else mask
            )
            names.append(sample.name)
        if images and (len(images) == batch_size or index == count - 1):
            batch = prepare(images, model.preprocess)
            parts.append(_completed(model, batch, torch.cat(masks), mode))
            images, masks = [], []
    if not parts:
        raise ValueError(f"none of the {count} images of {source.address} can be read")
    return _finished(parts, model), names


def reconstruct_settings(
    model: MaskedAutoencoder,
    source: ImageSource,
    *,
    kinds: Sequence[MaskKind] = ("random",),
    ratios: Sequence[float] = (0.75,),
    seed: int = 0,
    mask: Tensor | None = None,
    mode: PixelMode | None = None,
) -> tuple[list[tuple[str, Reconstruction]], list[str]]:
    """[(words, reconstruction)] of the same images for every mask kind and ratio, and their names.

    The words say the setting, such as "block 75%". A `mask` (1, L) of your own stands alone.
    Raises ValueError as `reconstruct_source`, and for a mask given beside several settings.
    """
    settings = list(dict.fromkeys((kind, ratio) for kind in kinds for ratio in ratios))
    if mask is not None and len(settings) > 1:
        raise ValueError("a mask of your own is one setting: give one ratio and kind, or no mask")
    grid = grid_of(torch.empty(0, *model.preprocess.size), model.config.patch_hw)
    for _, ratio in settings if mask is None else []:
        num_kept(grid[0] * grid[1], ratio)  # every setting is checked before any work
    results = []
    names: list[str] = []
    for kind, ratio in settings:
        found, names = reconstruct_source(
            model, source, kind=kind, ratio=ratio, seed=seed, mask=mask, mode=mode
        )
        words = "your mask" if mask is not None else f"{kind} {100 * ratio:.3g}%"
        results.append((words, found))
    return results, names


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors on the [0, 1] scale; inf for 0."""
    return -10 * mse.log10()


def patch_statistics(images: Tensor, patch_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and spread (B, L, 1) of each patch, as the normalised target uses them.

    Over all h*w*C values; the spread is the root of the unbiased variance + 1e-6.
    """
    variance, mean = torch.var_mean(patchify(images, patch_hw), dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def fill_from_visible(
    values: Tensor, mask: Tensor, grid: tuple[int, int], patch_hw: tuple[int, int]
) -> Tensor:
    """Values (B, L, 1) in which those of removed patches are estimated from visible ones.

    The estimate is the mean over visible patches, weighted by 1 / squared distance between patch
    centres in pixels. Raises ValueError when an image has no visible patch.
    """
    if bool(mask.all(dim=1).any()):
        raise ValueError(
            "an image has no visible patch to estimate brightness and contrast from; keep at least"
            " one, or use mode 'oracle' or 'raw'"
        )
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    centres = torch.cartesian_prod(rows * patch_hw[0], columns * patch_hw[1])
    weights = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist") ** -2
    weights.fill_diagonal_(0)
    # Not multiplied by the mask: removed pixels must not matter even when they are not finite.
    known = values.double().masked_fill(mask[..., None], 0)
    estimate = (weights @ known) / (weights @ (~mask[..., None]).double())
    return torch.where(mask[..., None], estimate.to(values.dtype), values)


def _checked_mode(mode: PixelMode | None, normalised: bool) -> PixelMode:
    if mode is None:
        return "visible" if normalised else "raw"
    if mode not in get_args(PixelMode):
        raise ValueError(f"mode must be one of {', '.join(get_args(PixelMode))}, not {mode!r}")
    if not normalised and mode != "raw":
        raise ValueError(
            f"mode {mode!r} puts back the mean and contrast of normalised patches, but this model"
            " was trained without norm_pix_loss and predicts pixels: use mode 'raw' or none"
        )
    return mode


def _from_visible(
    mean: Tensor, spread: Tensor, mask: Tensor, images: Tensor, patch_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    grid = grid_of(images, patch_hw)
    return (
        fill_from_visible(mean, mask, grid, patch_hw),
        fill_from_visible(spread, mask, grid, patch_hw),
    )


def _displayed(normalised: Tensor) -> Tensor:
    return (0.5 + normalised / (2 * DISPLAY_DEVIATIONS)).clamp(0, 1)


def pixel_mask(path: str | Path, config: ModelConfig) -> Tensor:
    """The mask (1, L) of an image file whose bright pixels are removed: at least half of white.

    The picture is fitted to the model's image size as images are; a patch is removed when at least
    half of it is bright. Raises FileNotFoundError, and ValueError for a file that is no image or
    that removes no patch or every patch.
    """
    file = user_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no mask file {path}")
    try:
        grey = fit(to_channels(decode_image(file, str(path)), 1), config.image_hw)[0]
        # Floats need not end at 1: half of the brightest is bright.
        white = 256 if grey.dtype == torch.uint8 else max(1.0, float(grey.max()))
        bright = grey >= white / 2
        return mask_from_pixels(bright, config.patch_hw)
    except UnreadableImage as error:
        raise ValueError(f"the mask {error}") from error
    except ValueError as error:
        raise ValueError(f"the mask {path}: {error}") from error
