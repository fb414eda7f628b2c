"""DEPICT: white-box segmentation, class embeddings compared with compressed patch tokens.

Shapes: B images, L patches on a grid of rows x columns, N tokens, d token width, C classes, H heads
of r dimensions. Source: "Rethinking Decoders for Transformer-based Semantic Segmentation: A
Compression Perspective" (NeurIPS 2024, arXiv 2411.03033), as its authors' code computes it;
docs/family.md says where paper and code differ.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.encoder import Encoder
from crate_mae.models.linear_decoder import LinearDecoder, check_fills
from crate_mae.models.mask_classes import MaskClasses
from crate_mae.models.patches import grid_of

DecoderForm = Literal["self", "cross"]

CROSS_LAYERS = 3
"""Cross-attention layers of the published code, whatever its number of layers."""


class SubspaceStep(nn.Module):
    """A step of attention whose one matrix P projects in and out, times a learned step size s.

        step(x; q) = s concat_k( softmax(q_k w_k^T / sqrt(r)) w_k ) P,    w = LN(x) P^T

    q is w itself, or the projection of queries that were given, which are not normalised. P is
    (H r, d); s may have either sign.
    """

    def __init__(self, *, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.subspaces = nn.Parameter(torch.empty(num_heads * head_dim, dim))  # P
        self.step_size = nn.Parameter(torch.empty(1))  # s
        nn.init.normal_(self.subspaces, std=1 / math.sqrt(dim))
        nn.init.normal_(self.step_size)

    def attention(self, tokens: Tensor, queries: Tensor | None = None) -> Tensor:
        """The weights of tokens (B, N, d) for each query (B, Q, d), or each other: (B, H, Q, N)."""
        w, q = self._heads(tokens, queries)
        return (q @ w.mT / math.sqrt(w.shape[-1])).softmax(dim=-1)

    def forward(self, tokens: Tensor, queries: Tensor | None = None) -> Tensor:
        """The step for tokens (B, N, d), or for queries (B, Q, d) that look at them; as these."""
        w, q = self._heads(tokens, queries)
        found = F.scaled_dot_product_attention(q, w, w)
        return self.step_size * (found.transpose(1, 2).flatten(-2) @ self.subspaces)

    def _heads(self, tokens: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor]:
        w = self._split(self.norm(tokens))
        return w, w if queries is None else self._split(queries)

    def _split(self, tokens: Tensor) -> Tensor:
        w = F.linear(tokens, self.subspaces)
        return w.view(*w.shape[:2], self.num_heads, -1).transpose(1, 2)


class SegmentationDecoder(nn.Module):
    """Scores of classes for every patch, from the features of an encoder.

    In form "self" patches and class embeddings are compressed together, `num_layers` times. In form
    "cross" patches are compressed among themselves, and the embeddings look at them three times.
    Either way a score is the cosine of patch and class, normalised over classes.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        form: DecoderForm = "self",
        num_layers: int = 3,
        num_heads: int = 3,
        head_dim: int = 100,
        cross_head_dim: int = 50,
    ) -> None:
        super().__init__()
        if form not in ("self", "cross"):
            raise ValueError(f"form must be 'self' or 'cross', not {form!r}")
        for name, value in (
            ("num_classes", num_classes),
            ("num_layers", num_layers),
            ("num_heads", num_heads),
            ("head_dim", head_dim),
            ("cross_head_dim", cross_head_dim),
        ):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        self.form = form
        self.sizes: dict[str, Any] = {
            "dim": dim, "num_classes": num_classes, "form": form, "num_layers": num_layers,
            "num_heads": num_heads, "head_dim": head_dim, "cross_head_dim": cross_head_dim,
        }  # fmt: skip
        """The arguments it was made with, by name."""
        self.classes = nn.Parameter(torch.empty(1, num_classes, dim))
        self.layers = nn.ModuleList(
            SubspaceStep(dim=dim, num_heads=num_heads, head_dim=head_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        cross = CROSS_LAYERS if form == "cross" else 0
        self.cross_layers = nn.ModuleList(
            SubspaceStep(dim=dim, num_heads=num_heads, head_dim=cross_head_dim)
            for _ in range(cross)
        )
        self.cross_norm = nn.LayerNorm(dim, eps=1e-5) if cross else None
        self.class_norm = nn.LayerNorm(num_classes, eps=1e-5)
        nn.init.trunc_normal_(self.classes, std=0.02)

    def compared(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, L, d) and classes (B, C, d) as they are compared, for features (B, L, d)."""
        classes = self.classes.expand(len(features), -1, -1)
        tokens = features
        if self.form == "self":
            tokens = torch.cat([tokens, classes], dim=1)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        tokens = self.norm(tokens)
        if self.cross_norm is None:
            count = features.shape[1]
            return tokens[:, :count], tokens[:, count:]
        for layer in self.cross_layers:
            classes = classes + layer(tokens, classes)
        return tokens, self.cross_norm(classes)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class scores (B, C, rows, columns) of patch features (B, L, d) on a grid.

        Features are those after the encoder's norm, without the class token. Raises ValueError
        where their number is not that of the grid.
        """
        check_fills(features, grid)
        patches, classes = self.compared(features)
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        # The norm takes the mean over classes out in any case. Taken out here, of vectors and not
        # of cosines, rounding is that of what tells classes apart, which may be little.
        classes = classes - classes.mean(dim=1, keepdim=True)
        scores: Tensor = self.class_norm(patches @ classes.mT)
        return scores.mT.reshape(len(features), -1, *grid)


def enlarged(scores: Tensor, patch_hw: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
    """Class scores (B, C, H, W) at every pixel, from those of patches (B, C, rows, columns).

    Bilinear over the patches' whole extent, then cut to an image that may end inside it.
    """
    rows, columns = scores.shape[-2:]
    whole = (rows * patch_hw[0], columns * patch_hw[1])
    pixels = F.interpolate(scores, size=whole, mode="bilinear", align_corners=False)
    return pixels[..., : image_hw[0], : image_hw[1]]


HeadName = Literal["linear", "depict-self", "depict-cross"]
Head = LinearDecoder | SegmentationDecoder


def segmentation_head(name: HeadName, *, dim: int, num_classes: int) -> Head:
    """A new head of a kind: linear, or DEPICT's in its published sizes; ValueError for another."""
    if name == "linear":
        return LinearDecoder(dim=dim, num_classes=num_classes)
    forms: dict[str, DecoderForm] = {"depict-self": "self", "depict-cross": "cross"}
    if name not in forms:
        raise ValueError(f"a head is linear, depict-self or depict-cross, not {name!r}")
    return SegmentationDecoder(dim=dim, num_classes=num_classes, form=forms[name])


def head_name(head: Head) -> HeadName:
    """What `segmentation_head` calls heads of this kind."""
    if isinstance(head, LinearDecoder):
        return "linear"
    return "depict-self" if head.form == "self" else "depict-cross"


class CrateSegmenter(CrateEncoder):
    """Class scores of every pixel: a segmentation head on the patch features of an encoder."""

    kind: ClassVar[str] = "CrateSegmenter"

    def __init__(
        self, encoder: Encoder, decoder: Head, *, classes: MaskClasses | None = None
    ) -> None:
        super().__init__(encoder.config, encoder)
        width, count = decoder.sizes["dim"], decoder.sizes["num_classes"]
        if encoder.config.dim != width:
            raise ValueError(
                f"the encoder's features have width {encoder.config.dim}, and the decoder is for"
                f" {width}"
            )
        if classes is not None and len(classes.values) != count:
            raise ValueError(f"the decoder tells {count} classes apart, not {len(classes.values)}")
        self.decoder = decoder
        self.classes = classes or MaskClasses.numbered(count)
        """What the numbers of classes mean, and how masks write them."""

    @classmethod
    def from_pretrained(
        cls, model: CrateMAE | CrateEncoder, *, head: HeadName, classes: MaskClasses
    ) -> "CrateSegmenter":
        """A segmenter that starts from a copy of a trained model's encoder, with a new head."""
        encoder = Encoder(model.config)
        encoder.load_state_dict(model.encoder.state_dict())
        count = len(classes.values)
        decoder = segmentation_head(head, dim=model.config.dim, num_classes=count)
        segmenter = cls(encoder, decoder, classes=classes)
        segmenter.preprocess = model.preprocess
        if model.preprocess is model.assumed_preprocess:
            segmenter.assumed_preprocess = model.preprocess
        return segmenter

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class scores (B, C, H, W) of images (B, channels, H, W) of any size.

        Images whose size is no multiple of the patch are filled up with zeros below and to the
        right. Features are those after the encoder's norm, which the decoder is derived for.
        `keep` (layers, B) multiplies each layer's MSSA step for each image: stochastic depth.
        """
        padded = self._padded(images)
        return self._scores(self.encoder(padded, keep), padded, images)

    def _padded(self, images: Tensor) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        down, across = (-s % p for s, p in zip(size, self.config.patch_hw, strict=True))
        return F.pad(images, (0, across, 0, down))

    def _scores(self, features: Tensor, padded: Tensor, images: Tensor) -> Tensor:
        patch_hw = self.config.patch_hw
        scores: Tensor = self.decoder(features[:, 1:], grid_of(padded, patch_hw))
        return enlarged(scores, patch_hw, (images.shape[-2], images.shape[-1]))

    def tensors_to_scores(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every tensor on the way to the scores, in order of computation."""
        padded = self._padded(images)
        for name, tensor in self.tensors_to_features(padded):
            yield name, tensor
            features = tensor
        yield "scores", self._scores(features, padded, images)

    def describe_head(self) -> dict[str, Any]:
        """What `config.json` says of the head and its classes, in plain values."""
        sizes = {key: value for key, value in self.decoder.sizes.items() if key != "form"}
        return {"segmenter": {"head": head_name(self.decoder), **sizes, **self.classes.facts()}}

    def untrained(self, seed: int) -> "CrateSegmenter":
        """A segmenter of the same configuration, head and classes with fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, head = Encoder(self.config), type(self.decoder)(**self.decoder.sizes)
        fresh = CrateSegmenter(encoder, head, classes=self.classes)
        fresh.preprocess = self.preprocess
        return fresh
