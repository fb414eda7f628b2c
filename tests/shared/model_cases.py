"""Small models, the golden tensors, and the whole model written out once more by plain loops.

`Definition` is the independent truth of these tests: every product, softmax and norm of the model
token by token in float64, from the equations alone. It shares no code with the package.
"""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import settings
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE, build_model
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.models.layers import DecoderLayer, EncoderLayer
from crate_mae.models.operators import operators_of
from crate_mae.weights.published import PublishedFacts, from_reference

GOLDEN = Path(__file__).parent / "golden" / "crate_mae_reference.safetensors"

some = settings(max_examples=40)


@cache
def golden() -> dict[str, Tensor]:
    """The golden tensors by name."""
    return load_file(GOLDEN)


def golden_under(prefix: str) -> dict[str, Tensor]:
    """The golden tensors whose name starts with a prefix, without it."""
    return {key.removeprefix(prefix): v for key, v in golden().items() if key.startswith(prefix)}


@cache
def family_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, configuration) of the golden file of another family, by its name."""
    path = GOLDEN.with_name(f"{name}.safetensors")
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    return load_file(path), json.loads(about["config"])


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


GOLDEN_FACTS = PublishedFacts(num_heads=4, sparsity=0.5, norm_pix_loss=False)
"""What the model of the golden tensors was computed with and its state does not hold."""


def golden_model(**changed: Any) -> CrateMAE:
    """The model that the golden tensors were computed with, single facts changed."""
    return from_reference(golden_under("state."), replace(GOLDEN_FACTS, **changed))


def tiny(**overrides: Any) -> ModelConfig:
    """A configuration of six patches that runs in a millisecond, with single fields replaced."""
    small = {
        "image_size": (8, 12),
        "patch_size": 4,
        "channels": 3,
        "dim": 12,
        "depth": 2,
        "num_heads": 3,
        "decoder_depth": 2,
        "decoder_num_heads": 2,
    }
    return ModelConfig(**{**small, **overrides})


def encoder_layer(config: ModelConfig) -> EncoderLayer:
    """One encoder layer of a configuration, with fresh weights."""
    one = replace(config, depth=1, decoder_depth=1)
    return next(iter(operators_of(config).encoder_layers(one)))


def decoder_layer(config: ModelConfig) -> DecoderLayer:
    """One decoder layer of a configuration, with fresh weights."""
    operators, one = operators_of(config), replace(config, depth=1, decoder_depth=1)
    return next(iter(operators.decoder_layers(one, operators.encoder_layers(one))))


VARIANTS = {
    "published": tiny(),
    "not square, five channels": tiny(image_size=(8, 18), patch_size=(4, 6), channels=5),
    "tied": tiny(output_projection="tied"),
    "single head": tiny(num_heads=1, decoder_num_heads=1),
    "single head, tied": tiny(num_heads=1, decoder_num_heads=1, output_projection="tied"),
    "one head in the decoder": tiny(num_heads=4, decoder_num_heads=1, decoder_depth=1),
    "visible only": tiny(mask_tokens="decoder"),
    "normalised target": tiny(norm_pix_loss=True, step_size=0.3, sparsity=0.05),
    "overcomplete": tiny(overcomplete=3, sparsity=0.1),
    "everything at once": tiny(
        image_size=(12, 10),
        patch_size=(3, 5),
        channels=1,
        depth=3,
        decoder_depth=1,
        output_projection="tied",
        mask_tokens="decoder",
        norm_pix_loss=True,
    ),
}


FAMILY: dict[str, ModelConfig] = {
    "crate": tiny(
        embedding="norm-linear-norm",
        positions="learned",
        final_norm_eps=1e-5,
        initial_values="crate",
        head_norm="pooled",
        sparsity=0.1,
    ),
    "crate-alpha": tiny(
        positions="learned",
        layer_norm_eps=1e-6,
        overcomplete=3,
        sparse_step="decoupled",
        output_projection="free-no-bias",
        initial_values="crate-alpha",
        head_norm="pooled",
        sparsity=0.1,
        decoder_num_heads=6,
    ),
    "tost": tiny(attention="tssa", subspace_bias=True, initial_values="tost", sparsity=0.1),
    "tost, tied, visible only": tiny(
        attention="tssa", output_projection="tied", mask_tokens="decoder", positions="learned"
    ),
    "aot": tiny(sparse_step="none"),
    "aot, figure and step": tiny(
        sparse_step="none", attention_skip="normalised", compression_step=0.5
    ),
    "exact": tiny(attention="exact", output_projection="tied", eps_squared=0.5, sparsity=0.1),
    "exact, few tokens": tiny(
        image_size=(4, 8),
        attention="exact",
        output_projection="tied",
        num_heads=1,
        decoder_num_heads=1,
        compression_step=0.3,
        attention_skip="normalised",
    ),
    "the paper's own form": tiny(
        output_projection="tied", attention_skip="normalised", compression_step=0.2
    ),
    "faithful": tiny(
        output_projection="tied",
        attention_skip="normalised",
        compression_step=0.5,
        orthonormal_subspaces=True,
        bounded_steps=True,
        mirrored_decoder=True,
        decoder_num_heads=3,
        sparsity=0.1,
    ),
    "two steps, one atom a dimension": tiny(sparse_step="overcomplete", sparsity=0.1),
    "token statistics, decoupled": tiny(
        attention="tssa",
        output_projection="free-no-bias",
        compression_step=0.7,
        sparse_step="decoupled",
        overcomplete=2,
        embedding="norm-linear-norm",
        image_size=(12, 10),
        patch_size=(3, 5),
        channels=2,
        sparsity=0.05,
    ),
}
"""Operators of the other families, and combinations that no paper has."""


def make(config: ModelConfig, seed: int = 0, scale: float = 0.2) -> CrateMAE:
    """A model with every weight moved off its initial value: none can be left out unseen."""
    torch.manual_seed(seed)
    model = CrateMAE(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def digits_model(seed: int = 0, **changes: Any) -> CrateMAE:
    """A small untrained model for digits, the same one each time; single fields replaced."""
    torch.manual_seed(seed)
    small = {"image_size": 8, "patch_size": 2, "channels": 1, "dim": 16, "num_heads": 2}
    model = build_model("debug", **{**small, "decoder_num_heads": 2, **changes})
    model.preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.3,), std=(0.4,))
    return model


def images_for(config: ModelConfig, batch: int = 2, seed: int = 1) -> Tensor:
    """Random images of the size a configuration is for."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.channels, *config.image_hw, generator=generator)


def mask_for(config: ModelConfig, batch: int = 2, removed: int = 3, seed: int = 2) -> Tensor:
    """Masks that remove the same number of patches from every image."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, config.num_patches, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(config.num_patches, generator=generator)[:removed]] = True
    return mask


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; infinite for different shapes."""
    if found.shape != expected.shape:
        return math.inf
    return float((found.detach().double() - expected.detach().double()).abs().max())


def positions_by_loops(dim: int, rows: int, columns: int) -> Tensor:
    """The sin-cos table (1 + rows*columns, dim) in float64, entry by entry."""
    quarter = dim // 4
    table = torch.zeros(1 + rows * columns, dim, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                frequency = 1.0 / 10_000.0 ** (i / quarter)
                entry = table[1 + row * columns + column]
                entry[i] = math.sin(column * frequency)
                entry[quarter + i] = math.cos(column * frequency)
                entry[2 * quarter + i] = math.sin(row * frequency)
                entry[3 * quarter + i] = math.cos(row * frequency)
    return table


class Definition:
    """The model of a configuration and a state, one image and one token at a time, in float64.

    Weights are leaves that take gradients, so `loss(...).backward()` gives the gradients, too.
    """

    def __init__(self, model: CrateMAE) -> None:
        self.config = model.config
        self.weights: dict[str, Tensor] = {
            key: value.detach().double().clone().requires_grad_()
            for key, value in model.state_dict().items()
        }
        # The model keeps its table in float32, as the published checkpoints do.
        table = positions_by_loops(self.config.dim, *self.config.grid)
        self.positions = table.float().double()

    def norm(self, tokens: list[Tensor], name: str, eps: float) -> list[Tensor]:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        normed = []
        for token in tokens:
            mean = token.sum() / token.numel()
            variance = ((token - mean) ** 2).sum() / token.numel()
            normed.append((token - mean) / torch.sqrt(variance + eps) * weight + bias)
        return normed

    def subspace_coordinates(self, tokens: list[Tensor], name: str) -> list[Tensor]:
        return [self.weights[f"{name}.subspaces.weight"] @ token for token in tokens]

    def attention(self, tokens: list[Tensor], name: str, heads: int) -> list[list[Tensor]]:
        """The weights over all tokens, for every head and token."""
        coordinates, p = self.subspace_coordinates(tokens, name), self.config.dim // heads
        weights = []
        for head in range(heads):
            w = [c[head * p : (head + 1) * p] for c in coordinates]
            rows = []
            for query in w:
                scores = torch.stack([(query * key).sum() / math.sqrt(p) for key in w]).exp()
                rows.append(scores / scores.sum())
            weights.append(rows)
        return weights

    def mssa(self, tokens: list[Tensor], name: str, heads: int) -> list[Tensor]:
        coordinates, p = self.subspace_coordinates(tokens, name), self.config.dim // heads
        attention = self.attention(tokens, name, heads)
        outputs = []
        for index in range(len(tokens)):
            mixed = []
            for head in range(heads):
                total = torch.zeros(p, dtype=torch.float64)
                for weight, c in zip(attention[head][index], coordinates, strict=True):
                    total = total + weight * c[head * p : (head + 1) * p]
                mixed.append(total)
            joined = torch.cat(mixed)
            if self.config.output_projection == "tied":
                joined = self.weights[f"{name}.subspaces.weight"].T @ joined
            elif heads > 1:
                output = self.weights[f"{name}.output.weight"], self.weights[f"{name}.output.bias"]
                joined = output[0] @ joined + output[1]
            outputs.append(joined)
        return outputs

    def encoder_layer(self, tokens: list[Tensor], index: int) -> list[Tensor]:
        name, eta = f"encoder.layers.{index}", self.config.step_size
        step = self.mssa(
            self.norm(tokens, f"{name}.norm1", 1e-5), f"{name}.mssa", self.config.num_heads
        )
        h = [token + move for token, move in zip(tokens, step, strict=True)]
        if self.config.overcomplete > 1:
            normed = self.norm(h, f"{name}.norm2", 1e-5)
            return self.with_codes(h, normed, f"{name}.ista.dictionary")
        D = self.weights[f"{name}.ista.dictionary"]
        codes = []
        for x in self.norm(h, f"{name}.norm2", 1e-5):
            moved = x + eta * (D.T @ (x - D @ x)) - eta * self.config.sparsity
            codes.append(torch.where(moved > 0, moved, torch.zeros_like(moved)))
        return codes

    def with_codes(self, tokens: list[Tensor], normed: list[Tensor], name: str) -> list[Tensor]:
        """Tokens to which D a is added, a the second ISTA iterate from 0 for the normed token."""
        D, eta, made = self.weights[name], self.config.step_size, []
        for token, x in zip(tokens, normed, strict=True):
            a = torch.zeros(D.shape[1], dtype=torch.float64)
            for _ in range(2):
                moved = a + eta * (D.T @ (x - D @ a)) - eta * self.config.sparsity
                a = torch.where(moved > 0, moved, torch.zeros_like(moved))
            made.append(token + D @ a)
        return made

    def decoder_layer(self, tokens: list[Tensor], index: int) -> list[Tensor]:
        name = f"decoder.{index}"
        x = self.norm(tokens, f"{name}.norm1", 1e-5)
        if self.config.overcomplete > 1:
            y = self.with_codes(tokens, x, f"{name}.synthesis.dictionary")
        else:
            A = self.weights[f"{name}.synthesis.weight"]
            y = [A @ token for token in x]
        step = self.mssa(
            self.norm(y, f"{name}.norm2", 1e-5), f"{name}.mssa", self.config.decoder_num_heads
        )
        return [token - move for token, move in zip(y, step, strict=True)]

    def patches(self, image: Tensor) -> list[Tensor]:
        """Pixels (C, h, w) of every patch in raster order."""
        (rows, columns), (h, w) = self.config.grid, self.config.patch_hw
        return [
            image[:, row * h : (row + 1) * h, column * w : (column + 1) * w].double()
            for row in range(rows)
            for column in range(columns)
        ]

    def patch_tokens(self, image: Tensor) -> list[Tensor]:
        kernel = self.weights["encoder.patch_embed.weight"]
        bias = self.weights["encoder.patch_embed.bias"]
        return [
            torch.stack([(kernel[j] * patch).sum() + bias[j] for j in range(self.config.dim)])
            for patch in self.patches(image)
        ]

    def encode(self, tokens: list[Tensor]) -> list[Tensor]:
        for index in range(self.config.depth):
            tokens = self.encoder_layer(tokens, index)
        return self.norm(tokens, "encoder.norm", 1e-6)

    def features(self, image: Tensor) -> Tensor:
        tokens = [self.weights["encoder.class_token"].flatten(), *self.patch_tokens(image)]
        placed = [t + place for t, place in zip(tokens, self.positions, strict=True)]
        return torch.stack(self.encode(placed))

    def prediction(self, image: Tensor, mask: Tensor) -> Tensor:
        first = self.weights["encoder.class_token"].flatten()
        filler, removed = self.weights["mask_token"].flatten(), mask.tolist()
        patches, positions = self.patch_tokens(image), list(self.positions)
        if self.config.mask_tokens == "encoder":
            tokens = [first + positions[0]]
            for index, patch in enumerate(patches):
                tokens.append((filler if removed[index] else patch) + positions[1 + index])
            tokens = self.encode(tokens)
        else:
            kept = [index for index in range(len(patches)) if not removed[index]]
            seen = [first + positions[0]] + [patches[i] + positions[1 + i] for i in kept]
            latent = self.encode(seen)
            tokens = [latent[0] + positions[0]]
            for index in range(len(patches)):
                token = filler if removed[index] else latent[1 + kept.index(index)]
                tokens.append(token + positions[1 + index])
        for index in range(self.config.decoder_depth):
            tokens = self.decoder_layer(tokens, index)
        weight, bias = self.weights["prediction.weight"], self.weights["prediction.bias"]
        return torch.stack(
            [weight @ token + bias for token in self.norm(tokens, "decoder_norm", 1e-6)[1:]]
        )

    def target(self, image: Tensor) -> Tensor:
        targets = []
        for patch in self.patches(image):
            _, height, width = patch.shape
            values = torch.stack(
                [
                    patch[channel, row, column]
                    for row in range(height)
                    for column in range(width)
                    for channel in range(self.config.channels)
                ]
            )
            if self.config.norm_pix_loss:
                mean = values.sum() / len(values)
                variance = ((values - mean) ** 2).sum() / (len(values) - 1)
                values = (values - mean) / torch.sqrt(variance + 1e-6)
            targets.append(values)
        return torch.stack(targets)

    def loss(self, images: Tensor, mask: Tensor) -> Tensor:
        errors = []
        for image, removed in zip(images, mask, strict=True):
            prediction, target = self.prediction(image, removed), self.target(image)
            for index in range(len(removed)):
                if removed[index]:
                    errors.append(((prediction[index] - target[index]) ** 2).mean())
        return torch.stack(errors).mean()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """The gradient of every parameter by name."""
    return {name: parameter.grad for name, parameter in model.named_parameters()}
