"""What is measured against what: the subjects by name."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from crate_mae.common.hints import did_you_mean
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.backbone import MaskedAutoencoder
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.models.masks import num_kept
from crate_mae.vitmae.model import build_vitmae, vitmae_config
from speed.arithmetic import (
    Attend,
    GradientStep,
    WrittenCrate,
    explicit_attention,
    folded_product,
    fused_attention,
    three_products,
    two_products,
)

Work = Literal["train", "encode"]
COMPILED = "+compile"
VISIBLE = "crate-visible"
"""The library's model with an encoder that sees visible patches only."""
INSTALL = 'pip install "crate-mae[bench]"'


class Runner(Protocol):
    """A module that a subject is measured as."""

    def __call__(self, images: Tensor, mask: Tensor) -> Tensor:
        """The masked loss (scalar) of images (B, C, H, W) and masks (B, L), True = removed."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 1 + L, d) of whole images (B, C, H, W)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One of the things that are measured against each other."""

    summary: str
    """What it is, in a line."""
    build: Callable[[ModelConfig, float], nn.Module]
    """Its module (a `Runner`) for a configuration and a mask ratio, with fresh weights."""
    works: tuple[Work, ...] = ("train", "encode")
    """What it can be timed at."""
    library: str | None = None
    """The package it needs besides our own."""
    same: bool = False
    """Whether it computes what `crate` computes, number for number."""


class Completer(nn.Module):
    """A masked autoencoder of ours or ViT-MAE, as the library runs it: a `Runner`."""

    def __init__(self, model: MaskedAutoencoder, ratio: float) -> None:
        super().__init__()
        self.model = model
        # Told, so that no GPU is waited for.
        self.kept = num_kept(model.config.num_patches, ratio)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        loss: Tensor = self.model(images, mask, kept=self.kept).loss
        return loss

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


class _Timm(nn.Module):
    """A ViT encoder of timm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(images)
        return features


def _crate(config: ModelConfig, ratio: float, *, visible: bool = False) -> nn.Module:
    return Completer(
        CrateMAE(replace(config, mask_tokens="decoder" if visible else "encoder")), ratio
    )


def _written(
    config: ModelConfig, _: float, *, attend: Attend, gradient_step: GradientStep
) -> nn.Module:
    model = CrateMAE(replace(config, mask_tokens="encoder"))
    return WrittenCrate(model, attend=attend, gradient_step=gradient_step)


def _vitmae(config: ModelConfig, ratio: float, *, published: bool = False) -> nn.Module:
    settings = vitmae_config(config)
    if published:  # the decoder of all of MAE's sizes, and transformers' default
        settings.decoder_hidden_size = 512
        settings.decoder_intermediate_size = 2048
        settings.decoder_num_hidden_layers = 8
        settings.decoder_num_attention_heads = 16
    seed = torch.initial_seed() % (1 << 31)
    twin = build_vitmae(settings, preprocess=Preprocess.identity(config), seed=seed)
    return Completer(twin, ratio)


def _timm(config: ModelConfig, _: float) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return _Timm(
        VisionTransformer(
            img_size=config.image_hw,
            patch_size=config.patch_hw,
            in_chans=config.channels,
            num_classes=0,
            global_pool="",
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
        )
    )


SUBJECTS: dict[str, Subject] = {
    "crate": Subject(summary="the library as it is", build=_crate, same=True),
    "crate-reference": Subject(
        summary="plain arithmetic: N x N attention weights, three products in ISTA",
        build=partial(_written, attend=explicit_attention, gradient_step=three_products),
        same=True,
    ),
    "crate-two-product": Subject(
        summary="fused attention, ISTA as r = x - x D^T, x + eta r D",
        build=partial(_written, attend=fused_attention, gradient_step=two_products),
        same=True,
    ),
    "crate-folded": Subject(
        summary="fused attention, ISTA as x M with M made in every call",
        build=partial(_written, attend=fused_attention, gradient_step=folded_product),
        same=True,
    ),
    VISIBLE: Subject(
        summary="the library, encoding visible patches only (mask_tokens: decoder)",
        build=partial(_crate, visible=True),
        works=("train",),
    ),
    "vitmae-twin": Subject(
        summary="Hugging Face ViT-MAE, same configuration; encodes visible patches only",
        build=_vitmae,
        library="transformers",
    ),
    "vitmae-published": Subject(
        summary="Hugging Face ViT-MAE, same encoder with MAE's decoder (512 wide, 8 layers)",
        build=partial(_vitmae, published=True),
        works=("train",),
        library="transformers",
    ),
    "timm-vit": Subject(
        summary="timm ViT encoder of the same sizes", build=_timm, works=("encode",), library="timm"
    ),
}
USUAL = ("crate", "crate-reference", "crate-visible", "vitmae-twin", "timm-vit")


def subject_of(name: str) -> Subject:
    """The subject that a name, compiled or not, means; ValueError with near names for others."""
    plain = name.removesuffix(COMPILED)
    if plain not in SUBJECTS:
        raise ValueError(
            f"unknown subject {plain!r}{did_you_mean(plain, SUBJECTS)};"
            f" subjects: {', '.join(SUBJECTS)}"
        )
    return SUBJECTS[plain]


def choose_subjects(
    asked: Sequence[str] | None, config: ModelConfig, *, compiled: bool = False
) -> tuple[list[str], list[str]]:
    """The names of the subjects to measure, and notes about those that are left out.

    `asked` are names, None means the usual ones (and MAE's published decoder beside an encoder that
    MAE published); `compiled` adds NAME+compile for each. Raises ValueError for unknown or repeated
    names and ImportError, with the command that installs it, when an asked one lacks its library.
    """
    names = list(USUAL if asked is None else asked)
    if asked is None and (config.dim, config.depth) in ((768, 12), (1024, 24)):
        names.append("vitmae-published")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"name each subject once, not {', '.join(names) or 'none'}")
    chosen, notes = [], []
    for name in names:
        reason = _hindrance(name, config)
        if reason is None:
            chosen.append(name)
        elif asked is not None:
            raise reason
        else:
            notes.append(f"{name} left out: {reason}")
    if compiled:
        chosen += [name + COMPILED for name in chosen if not name.endswith(COMPILED)]
    return list(dict.fromkeys(chosen)), notes


def _hindrance(name: str, config: ModelConfig) -> ImportError | ValueError | None:
    """Why a subject cannot be measured here, or None."""
    library = subject_of(name).library
    if library is None:
        return None
    if importlib.util.find_spec(library) is None:
        return ImportError(f"{name} needs {library}, which is not installed: {INSTALL}")
    if library == "transformers":
        try:
            vitmae_config(config)
        except ValueError as error:
            return error
    return None
