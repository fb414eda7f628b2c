"""A new attention operator, trained and measured: a class, one line to plug it in, the same tools.

    python examples/new_attention_operator.py --steps 400

Cosine MSSA compares tokens by direction alone, with a learned sharpness for every head.
"""

import argparse
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crate_mae import CrateMAE, ModelConfig, Preprocess
from crate_mae.batches import prepared_batches
from crate_mae.models import MSSA, PUBLISHED
from crate_mae.sources import open_images
from crate_mae.whitebox import analyse, curve


class CosineMSSA(MSSA):
    """MSSA with weights softmax(s_k cos(w_k, w_k)): query, key and value stay one projection."""

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__(dim=dim, num_heads=num_heads, output_projection="free")
        self.sharpness = nn.Parameter(torch.full((num_heads, 1, 1), 5.0))

    def attention(self, x: Tensor) -> Tensor:
        """The weights for tokens x (B, N, d): (B, K, N, N)."""
        directions = F.normalize(self.project(x), dim=-1)
        return (self.sharpness * directions @ directions.mT).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """The compression direction for tokens x (B, N, d): (B, N, d)."""
        heads = self.attention(x) @ self.project(x)
        tokens = heads.transpose(1, 2).flatten(-2)
        return tokens if self.output is None else self.output(tokens)


def cosine(config: ModelConfig, num_heads: int) -> CosineMSSA:
    """The operator of one layer, with fresh weights."""
    return CosineMSSA(dim=config.dim, num_heads=num_heads)


def main() -> None:
    """Train the published and the new layers alike; print loss and R^c after every compression."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()

    config = ModelConfig(
        image_size=8, patch_size=2, channels=1, dim=48, depth=3, decoder_depth=2,
        num_heads=4, decoder_num_heads=4,
    )  # fmt: skip
    preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.305,), std=(0.376,))
    source = open_images(["digits"], split="train")
    batches = prepared_batches(source, preprocess, batch_size=len(source), broken=[])
    images = torch.cat([batch.images for batch in batches])

    for name, operators in (("MSSA", PUBLISHED), ("cosine", replace(PUBLISHED, attention=cosine))):
        torch.manual_seed(0)
        model = CrateMAE(config, operators)
        model.preprocess = preprocess
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(given.steps):
            loss = model(images[torch.randint(len(images), (64,))], mask_ratio=0.5).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        rows = analyse(model, source).rows
        rates = curve(rows, "subspace_coding_rate", model="model", side="encoder", point="compress")
        shown = ", ".join(f"{row.mean:.2f}" for row in rates)
        print(f"{name:<7} loss {loss.item():.3f}   R^c after compression, layer by layer: {shown}")


if __name__ == "__main__":
    main()
