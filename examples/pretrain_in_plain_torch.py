"""Masked pre-training in ten lines of plain torch: no Trainer, no recipe, your own loop.

    python examples/pretrain_in_plain_torch.py --steps 600

Handwritten digits (8 x 8, from scikit-learn); on one core, seconds for every hundred steps.
"""

import argparse

import torch

from crate_mae import Preprocess, build_model, save_model
from crate_mae.batches import prepared_batches
from crate_mae.sources import measure_statistics, open_images


def main() -> None:
    """Train a small model, print its loss, and save it with what it knows of its images."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", help="weights folder to write")
    given = parser.parse_args()

    torch.manual_seed(0)
    source = open_images(["digits"], split="train")
    # How pixels become input travels with the weights: mean and std on the [0, 1] scale.
    mean, std = measure_statistics(source, channels=1)
    preprocess = Preprocess(size=(8, 8), channels=1, mean=mean, std=std)
    model = build_model(
        "debug",
        preprocess=preprocess,
        image_size=8,
        patch_size=2,
        channels=1,
        dim=96,
        depth=4,
        decoder_depth=2,
    )
    batches = prepared_batches(source, preprocess, batch_size=len(source), broken=[])
    images = torch.cat([batch.images for batch in batches])

    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for step in range(given.steps):
        batch = images[torch.randint(len(images), (64,))]
        loss = model(batch, mask_ratio=0.5).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0 or step + 1 == given.steps:
            print(f"step {step + 1:4d}  masked loss {loss.item():.3f}")

    if given.out:
        print(f"wrote {save_model(model, given.out)}")


if __name__ == "__main__":
    main()
