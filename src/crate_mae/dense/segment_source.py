"""From images and, if there are any, true masks to foreground masks and their scores."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crate_mae.common.progress import Progress
from crate_mae.common.text_tables import named_values
from crate_mae.dense.attention import AttentionMaps, attention_maps, head_numbers
from crate_mae.dense.layout import Pair, layout_of
from crate_mae.dense.masks import TrueMasks, encoded_masks, load_masks
from crate_mae.dense.segment_options import (
    DEFAULT_MASS,
    SegmentMethod,
    check_ignored_value,
    check_segment_options,
)
from crate_mae.dense.segmentation import (
    Agreement,
    Segmentation,
    agreement,
    centred_ellipse,
    check_attends,
    segment_attention,
    segment_brightness,
    segment_mixture,
    segment_pixels,
    segment_tokens,
)
from crate_mae.dense.thresholds import checked_mass
from crate_mae.dense.token_maps import (
    AnyModel,
    ShownImages,
    TokenKind,
    shown_images,
    token_map,
)
from crate_mae.evaluation.answers import answers_text, foreground_answers
from crate_mae.sources.base import ImageSource

SHOWN_LINES = 20
"""Images that get a line each; JSON has all."""


@dataclass(frozen=True, kw_only=True)
class SegmentSettings:
    """How foreground is found: `segment_tokens`, `segment_mixture` or `segment_attention`, and
    `token_map`. What is not for the method stays at its default."""

    method: SegmentMethod = "pca"
    layer: int | None = None
    """Layers that the tokens have passed (None: all, and the final norm); of "attention" the layer,
    from 0 (None: the last)."""
    kind: TokenKind = "tokens"
    each: bool = False
    flip: bool = False
    threshold: float | None = None
    head: int | None = None
    mass: float = DEFAULT_MASS
    size: Pair | None = None
    stride: int | Pair | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentedSource:
    """Foreground of the images of a source and, where there is a truth, how well it fits."""

    names: list[str]
    shown: Tensor
    """(B, C, H, W) images on the [0, 1] scale."""
    segmentation: Segmentation
    truth: Tensor | None
    """(B, H, W) boolean"""
    scores: Agreement | None
    pixels: Agreement | None
    """Of the same rule on raw pixels of patches, without a model; None for attention or without a
    truth, and where raw pixels have no threshold."""
    heads: list[float] | None
    """Mean IoU of every head by itself; for attention with a truth."""
    ellipse: Agreement | None
    """Of a centred ellipse over half of each image; None without a truth."""
    brightness: Agreement | None
    """Of Otsu's threshold on the brightness of each image; None without a truth."""
    ignored: str
    """What of the masks does not count, in words; empty where everything does."""
    unreadable: list[tuple[str, str]]
    settings: SegmentSettings

    def table(self) -> str:
        """What was found, a line for each image and number."""
        share = self.segmentation.masks.double().mean(dim=(1, 2)).tolist()
        lines = [self.segmentation.words()]
        for row, name in enumerate(self.names[:SHOWN_LINES]):
            fit = "" if self.scores is None else f", IoU {float(self.scores.iou[row]):.3f}"
            lines.append(f"{name}: {share[row]:.0%} foreground{fit}")
        if len(self.names) > SHOWN_LINES:
            lines.append(f"{len(self.names) - SHOWN_LINES} more: --json FILE")
        lines += [self.ignored] if self.ignored else []
        controls: list[tuple[str, Tensor | float]] = []
        if self.scores is not None:
            lines.append(
                f"mean IoU {float(self.scores.iou.mean()):.4f} of {len(self.names)} images"
            )
            controls.append(("everything called foreground", self.scores.everything.mean()))
            for name, found in (
                ("centred ellipse", self.ellipse),
                ("Otsu on brightness", self.brightness),
                ("same rule on raw pixels", self.pixels),
            ):
                controls += [(name, found.iou.mean())] if found is not None else []
            controls.append(("oracle: better side, by truth", self.scores.oracle.mean()))
            if self.brightness is not None:
                side = self.brightness.oracle.mean()
                controls.append(("oracle: better side of brightness", side))
        if self.heads is not None:
            best = max(range(len(self.heads)), key=self.heads.__getitem__)
            controls.append((f"oracle: best head, {best}", self.heads[best]))
        shown = ((name, f"{float(iou):.4f}") for name, iou in controls)
        lines += named_values(shown, indent="  ")
        return "\n".join([*lines, *self._in_words()])

    def _in_words(self) -> list[str]:
        if self.scores is None or self.ellipse is None or self.brightness is None:
            return []
        answers = foreground_answers(
            float(self.scores.iou.mean()),
            everything=float(self.scores.everything.mean()),
            ellipse=float(self.ellipse.iou.mean()),
            brightness=float(self.brightness.iou.mean()),
        )
        return [answers_text(answers)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        share = self.segmentation.masks.double().mean(dim=(1, 2)).tolist()
        return {
            "settings": asdict(self.settings),
            "words": self.segmentation.words(),
            "names": self.names,
            "foreground_share": share,
            "unreadable": [list(entry) for entry in self.unreadable],
            "agreement": None if self.scores is None else self.scores.to_dict(),
            "raw_pixels": None if self.pixels is None else self.pixels.to_dict(),
            "mean_iou_by_head": self.heads,
            "centred_ellipse": None if self.ellipse is None else self.ellipse.to_dict(),
            "otsu_brightness": None if self.brightness is None else self.brightness.to_dict(),
            "ignored": self.ignored,
        }


def segment_images(
    model: AnyModel,
    source: ImageSource,
    settings: SegmentSettings,
    *,
    masks: str | Path | None = None,
    ignore: int | None = None,
    progress: Progress | None = None,
) -> SegmentedSource:
    """The foreground of the readable images of a source, measured against true `masks`.

    These lie in a folder or, as "column:NAME", beside the images of parquet files; `ignore` is the
    value of their pixels that do not count (`load_masks`).
    Raises ValueError for settings that the method would ignore, for `ignore` without `masks`, and
    as `token_map`, `attention_maps`, `mask_files`, `load_masks` and the methods, before the model
    runs where that can be known.
    """
    check_segment_options(
        settings.method,
        {
            "--per-image": settings.each,
            "--flip": settings.flip,
            "--threshold": settings.threshold is not None,
            "--tensor": settings.kind != "tokens",
            "--heads": settings.head is not None,
            "--mass": settings.mass != DEFAULT_MASS,
        },
    )
    check_ignored_value(given=ignore is not None, masks=masks is not None)
    checked_mass(settings.mass)
    if settings.method == "attention":
        check_attends(model.stacks["encoder"][0].mssa)
    encoded = None if masks is None else encoded_masks(source, masks)
    if settings.head is not None:
        head_numbers([settings.head], model.config.num_heads)
    found = shown_images(model, source, size=settings.size, stride=settings.stride)
    size = (found.images.shape[2], found.images.shape[3])
    true: TrueMasks | None = None
    if encoded is not None:
        chosen = [encoded[name] for name in found.names]
        shown = [str(mask) if isinstance(mask, Path) else name
                 for mask, name in zip(chosen, found.names, strict=True)]  # fmt: skip
        true = load_masks(chosen, size, ignore=ignore, names=shown)
    maps: AttentionMaps | None = None
    if settings.method == "attention":
        layer = -1 if settings.layer is None else settings.layer
        maps = attention_maps(
            model, found.images, layers=[layer], stride=settings.stride, progress=progress
        )
        result = segment_attention(maps, head=settings.head, mass=settings.mass)
    else:
        tokens = token_map(
            model,
            found.images,
            layer=settings.layer,
            kind=settings.kind,
            stride=settings.stride,
            progress=progress,
        )
        if settings.method == "mixture":
            result = segment_mixture(tokens)
        else:
            result = segment_tokens(
                tokens, each=settings.each, quantile=settings.threshold, flip=settings.flip
            )
    scored = _Scored.of(model, found, settings, result, true)
    return SegmentedSource(
        names=found.names,
        shown=found.shown,
        segmentation=result,
        truth=None if true is None else true.truth,
        scores=scored.scores,
        pixels=scored.pixels,
        heads=None if true is None or maps is None else _by_head(maps, settings.mass, true),
        ellipse=scored.ellipse,
        brightness=scored.brightness,
        ignored="" if true is None else true.words,
        unreadable=found.unreadable,
        settings=settings,
    )


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """How masks fit a truth, beside masks that need no model; None without a truth."""

    scores: Agreement | None = None
    pixels: Agreement | None = None
    ellipse: Agreement | None = None
    brightness: Agreement | None = None

    @classmethod
    def of(
        cls,
        model: AnyModel,
        found: ShownImages,
        settings: SegmentSettings,
        result: Segmentation,
        true: TrueMasks | None,
    ) -> "_Scored":
        if true is None:
            return cls()
        fits = partial(agreement, truth=true.truth, counted=true.counted)
        plain = _raw_pixels(model, found.images, settings)
        size = (found.images.shape[2], found.images.shape[3])
        return cls(
            scores=fits(result.masks),
            pixels=None if plain is None else fits(plain.masks),
            ellipse=fits(centred_ellipse(size).expand_as(result.masks)),
            brightness=fits(segment_brightness(found.shown).masks),
        )


def _raw_pixels(model: AnyModel, images: Tensor, settings: SegmentSettings) -> Segmentation | None:
    if settings.method == "attention":
        return None
    layout = layout_of(model.config, (images.shape[2], images.shape[3]))
    try:
        return segment_pixels(
            images,
            layout,
            mixture=settings.method == "mixture",
            each=settings.each,
            quantile=settings.threshold,
            flip=settings.flip,
        )
    except ValueError:  # patches that are all alike have no foreground; tokens may still have one
        return None


def _by_head(maps: AttentionMaps, mass: float, true: TrueMasks) -> list[float]:
    heads = range(maps.weights.shape[2])
    found = [segment_attention(maps, head=head, mass=mass).masks for head in heads]
    scores = [agreement(masks, true.truth, counted=true.counted) for masks in found]
    return [float(torch.mean(score.iou)) for score in scores]
