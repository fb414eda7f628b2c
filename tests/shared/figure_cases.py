"""What the tests of figures draw, and readers of the pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crate_mae.dense.attention import AttentionMaps
from crate_mae.dense.layout import Layout
from crate_mae.dense.token_maps import TokenMap
from crate_mae.evaluation.feature_map import FeatureMap
from crate_mae.evaluation.reconstruction import Reconstruction, psnr


def completion(
    n: int = 2, channels: int = 3, size: tuple[int, int] = (8, 8), *, unit: float = 1.0
) -> Reconstruction:
    """Random completions of images, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    original, prediction = torch.rand(2, n, channels, *size, generator=generator) * unit
    mask = torch.tensor([True, False, True, True]).expand(n, -1)
    removed = mask.view(n, 1, 2, 2).repeat_interleave(size[0] // 2, 2)
    removed = removed.repeat_interleave(size[1] // 2, 3)
    error = torch.where(removed, prediction - original, 0).abs().mean(1, keepdim=True)
    mse = torch.rand(n, generator=generator)
    return Reconstruction(
        original=original,
        masked=torch.where(removed, 0.5, original),
        prediction=prediction,
        pasted=torch.where(removed, prediction, original),
        error=error,
        mask=mask,
        mse=mse,
        psnr=psnr(mse),
        mode="raw",
        caption="Pixels were predicted directly.",
    )


METRICS: list[dict[str, float]] = [
    *({"step": s, "train/loss": 1 / (1 + s / 100), "lr": 1e-3} for s in range(0, 1000, 10)),
    *(
        {"step": s, "val/loss": 1 / (1 + s / 90), "val/mean_colour": 0.9, "val/patch_mean": 0.4}
        for s in range(90, 1000, 100)
    ),
]


def shown_at(picture: np.ndarray, block: np.ndarray) -> tuple[int, int] | None:
    """Where an enlarged image (h, w, 3) stands in a picture, exactly, or None."""
    height, width = block.shape[:2]
    near = np.abs(picture.astype(int) - block[0, 0]).max(-1) <= 1  # rounding
    for top, left in zip(*near.nonzero(), strict=True):
        part = picture[top : top + height, left : left + width]
        if part.shape != block.shape or np.abs(part[-1, -1].astype(int) - block[-1, -1]).max() > 1:
            continue
        if np.abs(part.astype(int) - block).max() <= 1:
            return int(top), int(left)
    return None


def pixels(path: Path) -> np.ndarray:
    """The colours (H, W, 3) of a picture."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def colours_in(picture: np.ndarray) -> int:
    """How many colours a picture (H, W, 3) has; a blank one has a single one."""
    packed = picture.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    return len(np.unique(packed))


def texts(path: Path) -> str:
    """All words of an SVG; `svg_words` keeps them text."""
    root = ElementTree.parse(path).getroot()
    words = (element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    return " ".join(words)


def panels(path: Path) -> int:
    """How many images an SVG holds."""
    root = ElementTree.parse(path).getroot()
    return sum(1 for _ in root.iter("{http://www.w3.org/2000/svg}image"))


LAYOUT = Layout(image_hw=(8, 12), patch_hw=(4, 4), stride=(4, 4), trained_hw=(8, 12))


def pictures(channels: int = 3, count: int = 2) -> Tensor:
    """Random images of 8 x 12 pixels."""
    return torch.rand(count, channels, 8, 12, generator=torch.Generator().manual_seed(0))


def holds(picture: np.ndarray, colour: Any) -> int:
    """How many pixels of a picture have a colour (r, g, b) from 0 to 1."""
    wanted = np.round(np.asarray(colour)[:3] * 255)
    return int((np.abs(picture.astype(int) - wanted).max(-1) <= 1).sum())


def maps(**changes: Any) -> AttentionMaps:
    """Two images, two layers, three heads; head 1 of layer 0 looks at patch (1, 2) alone."""
    weights = torch.full((2, 2, 3, 7), 0.1)
    weights[..., 0] = 0.4
    weights[:, 0, 1] = torch.tensor([0.25, 0, 0, 0, 0, 0, 0.75])
    made = AttentionMaps(
        weights=weights, layers=(0, 3), side="encoder", query="class", layout=LAYOUT
    )
    return replace(made, **changes)


def tokens(count: int = 2, width: int = 5) -> TokenMap:
    """Random tokens of 2 x 3 patches."""
    values = torch.randn(count, 2, 3, width, generator=torch.Generator().manual_seed(0))
    return TokenMap(values=values, layer=1, kind="tokens", layout=LAYOUT)


def points(classes: int, labels: Tensor | None = None, method: str = "pca") -> FeatureMap:
    """Random points of so many classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5 * classes) % classes if labels is None else labels
    return FeatureMap(
        points=torch.randn(len(labels), 2, generator=generator).double(),
        labels=labels,
        class_names=tuple(f"kind ${index}" for index in range(classes)),
        method=method,  # type: ignore[arg-type]
        trustworthiness=0.876,
        neighbours=10,
        settings="laid out somehow",
    )
