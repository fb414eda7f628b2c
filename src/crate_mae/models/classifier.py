"""A classifier on the CRATE encoder."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import MAX_CLASSES, ModelConfig
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.initial_values import INITIAL_VALUES
from crate_mae.models.pools import Pool, head_width, places_of, pooled


class CrateClassifier(CrateEncoder):
    """Class scores from the encoder's tokens, pooled: see `models.pools.pooled`.

    With `head_norm="pooled"` in its configuration the tokens of the last layer are pooled as they
    are and the encoder's norm acts on what comes of it (CRATE); else tokens are normalised first.
    Pools wider than a token cannot be had there: ValueError.
    """

    kind: ClassVar[str] = "CrateClassifier"

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_classes: int,
        pool: Pool = "mean",
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(config)
        self.pool = pool
        self.class_names = class_names
        width = head_width(pool, config)
        self.head = classifier_head(width, num_classes, class_names=class_names)
        if config.initial_values != "crate-mae":  # those it has drawn already
            INITIAL_VALUES[config.initial_values].head(self.head)

    @classmethod
    def from_pretrained(
        cls,
        model: "CrateMAE | CrateEncoder",
        *,
        num_classes: int,
        pool: Pool = "mean",
        class_names: tuple[str, ...] | None = None,
    ) -> "CrateClassifier":
        """A classifier that starts from a copy of a trained model's encoder, with a new head."""
        classifier = cls(model.config, num_classes=num_classes, pool=pool, class_names=class_names)
        classifier.preprocess = model.preprocess
        if model.preprocess is model.assumed_preprocess:
            classifier.assumed_preprocess = model.preprocess
        classifier.encoder.load_state_dict(model.encoder.state_dict())
        return classifier

    def tensors_to_scores(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every tensor on the way to the scores, in order of computation."""
        walk = self.tensors_in_layers if self.pooled_layer else self.tensors_to_features
        yield from walk(images)
        yield "scores", self(images)

    def describe_head(self) -> dict[str, Any]:
        """What `config.json` says of the head, in plain values."""
        return head_facts(self.head, self.pool, self.class_names)

    def untrained(self, seed: int) -> "CrateClassifier":
        """A classifier of the same configuration and classes with fresh weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = CrateClassifier(
                self.config,
                num_classes=self.head.out_features,
                pool=self.pool,
                class_names=self.class_names,
            )
        fresh.preprocess = self.preprocess
        return fresh

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class scores (B, classes) of images (B, C, H, W).

        `keep` (layers, B) multiplies each layer's MSSA step for each image: stochastic depth.
        """
        places = places_of(self.pool, self.pooled_layer, self.config.depth)
        states = self.encoder.layer_tokens(images, places, keep)
        return self.score(pooled([states[place] for place in places], self.pool))

    @property
    def pooled_layer(self) -> int | None:
        """After how many layers tokens are pooled for the head; None: after the final norm, too."""
        return None if self.config.head_norm == "tokens" else self.config.depth

    def score(self, features: Tensor) -> Tensor:
        """Class scores (B, classes) of what was pooled (B, values of a row) at `pooled_layer`."""
        if self.pooled_layer is not None:
            features = self.encoder.norm(features)
        scores: Tensor = self.head(features)
        return scores


def classifier_head(
    width: int, num_classes: int, *, class_names: tuple[str, ...] | None
) -> nn.Linear:
    """A new head from features of this width to class scores.

    Raises ValueError for too few or too many classes, and names that do not fit.
    """
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"a classifier needs 2 to {MAX_CLASSES} classes, not {num_classes}")
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes")
    head = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def head_facts(head: nn.Linear, pool: Pool, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """What is written of a classifier's head beside its tensors, in plain values."""
    names = None if class_names is None else list(class_names)
    facts = {"num_classes": head.out_features, "pool": pool, "class_names": names}
    return {"classifier": facts}
