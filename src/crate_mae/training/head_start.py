"""A classifier's head that begins as the linear probe of its features, before all weights train.

A head with random weights sends large gradients into the encoder and changes its features before
it can use them; from a fitted one fine-tuning begins at the accuracy of the probe. Source: Kumar et
al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution".
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from crate_mae.batches.prepared import prepared_batches
from crate_mae.evaluation.backbones import evaluating
from crate_mae.evaluation.probe import fitted_head
from crate_mae.models.backbone import ImageClassifier
from crate_mae.sources.base import ImageSource

BATCH_SIZE = 64


def fit_head(model: ImageClassifier, source: ImageSource, *, seed: int = 0) -> str:
    """What a classifier's head is from now on, in words: the linear probe of what it sees.

    The labelled images are prepared as for a test, and the model runs in eval mode where it is;
    its training flags are put back. The penalty is chosen by held-out images or cross-validation,
    drawn by `seed`. Images that cannot be read are left out. ValueError when fewer than two
    classes are left.
    """
    seen, labels = head_inputs(model, source)
    found = fitted_head(seen, labels, num_classes=model.head.out_features, seed=seed)
    place = model.head.weight
    with torch.no_grad():
        model.head.weight.copy_(found.weight.to(place.device))
        model.head.bias.copy_(found.bias.to(place.device))
        right = (seen @ found.weight.T + found.bias).argmax(dim=1) == labels
    share = float(right.double().mean())
    return (
        f"the head begins as the linear probe of {len(labels)} images: penalty {found.penalty:g},"
        f" {share:.0%} of them right"
    )


def head_inputs(model: ImageClassifier, source: ImageSource) -> tuple[Tensor, Tensor]:
    """What the head sees of the readable labelled images, (n, d) float32, and their labels (n,).

    Taken at the head itself, so that it is right for every family and pool.
    """
    rows: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        rows.append(given[0].float().cpu())

    labels = []
    place = model.head.weight.device
    hook = model.head.register_forward_pre_hook(keep)
    try:
        with evaluating(cast("nn.Module", model)), torch.inference_mode():
            for batch in prepared_batches(
                source, model.preprocess, batch_size=BATCH_SIZE, broken=[]
            ):
                model(batch.images.to(place))
                labels.append(batch.labels)
    finally:
        hook.remove()
    known = torch.cat(labels)
    return torch.cat(rows)[known >= 0].clone(), known[known >= 0]
