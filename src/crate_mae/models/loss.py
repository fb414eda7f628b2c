"""The masked loss, its target, and the trivial predictions that it is read beside."""

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.models.patches import patchify


class BaselineSums:
    """Running sums behind the masked loss of two predictors that any model should beat.

    Float64 in one tensor, `sums`, so that partial results merge by adding (all-reduce with SUM):
    removed pixels, sum of squares, sum of squares about the own mean of each patch, and the sum of
    each channel.
    """

    def __init__(self, channels: int, device: str | torch.device = "cpu") -> None:
        self.sums = torch.zeros(3 + channels, dtype=torch.float64, device=device)

    def update(self, target: Tensor, mask: Tensor) -> None:
        """Count in target patches (B, L, P), in pixel order row, column, channel, where removed."""
        channels = len(self.sums) - 3
        wide = target.detach().to(self.sums.device, torch.float64)
        values = wide.reshape(*wide.shape[:2], -1, channels)  # (B, L, h*w, C)
        removed = mask.to(self.sums.device)[..., None, None]
        values = values.masked_fill(~removed, 0)
        centred = values - values.mean(dim=(2, 3), keepdim=True)
        self.sums += torch.cat(
            [
                (removed.sum() * values.shape[2]).double()[None],
                values.square().sum()[None],
                centred.square().sum()[None],
                values.sum(dim=(0, 1, 2)),
            ]
        )

    def mean_colour(self) -> float:
        """Masked loss of predicting the one colour that is best for all that was seen."""
        pixels = self._pixels()
        means = self.sums[3:] / pixels
        return float(self.sums[1] / (pixels * len(means)) - means.square().mean())

    def patch_mean(self) -> float:
        """Masked loss of predicting each patch's own mean over all of its values.

        Not honest, for it knows the mean. For normalised targets it is the prediction 0, and the
        loss is just below 1.
        """
        return float(self.sums[2] / (self._pixels() * (len(self.sums) - 3)))

    def _pixels(self) -> float:
        pixels = float(self.sums[0])
        if pixels == 0:
            raise ValueError("no removed patch has been counted in yet")
        return pixels


def masked_target(images: Tensor, patch_hw: tuple[int, int], *, normalise: bool) -> Tensor:
    """What a masked prediction is compared with (B, L, h*w*C), float32 or wider.

    The patches of images (B, C, H, W); normalised, each has its own mean subtracted and is divided
    by the root of its own unbiased variance + 1e-6 (MAE, section 3).
    """
    with torch.autocast(images.device.type, enabled=False):
        wide = torch.promote_types(images.dtype, torch.float32)
        patches = patchify(images.to(wide), patch_hw)
        if not normalise:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The squared error (scalar, float32 or wider): per patch, averaged over removed patches only.

    `prediction`, `target` (B, L, P); `mask` (B, L), True = removed (MAE, section 3).
    """
    with torch.autocast(prediction.device.type, enabled=False):
        wide = torch.promote_types(prediction.dtype, torch.float32)
        per_patch = F.mse_loss(prediction.to(wide), target.to(wide), reduction="none").mean(dim=-1)
        return (per_patch * mask).sum() / mask.sum()
