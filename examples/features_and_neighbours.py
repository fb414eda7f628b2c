"""Features of images and what they know: nearest neighbours and a linear probe, beside baselines.

    python examples/features_and_neighbours.py WEIGHTS DATA

WEIGHTS is a weights or run folder or a shipped model; DATA an address such as imagefolder:PATH.
Without arguments a shipped model reads handwritten digits, which it was never trained on.
"""

import argparse

import torch

from crate_mae import load_backbone
from crate_mae.evaluation import compare_models, comparison_table, extract_features
from crate_mae.sources import open_pair


def main() -> None:
    """Print which images are nearest to one, and how well features tell the classes apart."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", nargs="?", default="cifar10-small")
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--limit", type=int, default=500, help="training images")
    given = parser.parse_args()

    model, _ = load_backbone(given.weights)
    train, test = open_pair(given.data, limit=given.limit, test_limit=200)

    # One row of features an image: the mean of its patch tokens, after the last layer.
    known, asked = extract_features(model, train), extract_features(model, test)
    directions = torch.nn.functional.normalize(known.values, dim=1)
    query = torch.nn.functional.normalize(asked.values[0], dim=0)
    nearest = (directions @ query).topk(5).indices.tolist()
    print(f"nearest to {asked.names[0]}: {', '.join(known.names[i] for i in nearest)}")

    # The same protocol for the model, the same network untrained, and raw pixels.
    print(comparison_table(compare_models(model, train, test)))


if __name__ == "__main__":
    main()
