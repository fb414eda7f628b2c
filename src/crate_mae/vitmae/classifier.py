"""A classifier on a ViT-MAE encoder: what CrateClassifier is on ours, for fair comparisons."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from crate_mae.models.classifier import classifier_head, head_facts
from crate_mae.models.config import ModelConfig
from crate_mae.models.pools import Pool, head_width, places_of, pooled
from crate_mae.vitmae.encoder import ViTEncoder, encoder_facts, load_filled
from crate_mae.vitmae.model import Match, ViTMAE, vitmae_config
from crate_mae.weights.weights_folder import save_described

MODEL_TYPE = "vit_mae_classifier"
ARITHMETIC = (
    "hidden_size", "intermediate_size", "hidden_act", "layer_norm_eps", "qkv_bias",
    "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip
"""Settings of transformers that change what an encoder computes from the same weights."""


class ViTClassifier(ViTEncoder):
    """Class scores from the tokens of a ViT-MAE encoder, pooled: see `models.pools.pooled`.

    The encoder is that of the ViT-MAE baseline (`vitmae_config`) of a configuration.
    """

    kind: ClassVar[str] = MODEL_TYPE

    def __init__(
        self,
        config: ModelConfig,
        match: Match = "configuration",
        *,
        num_classes: int,
        pool: Pool = "mean",
        class_names: tuple[str, ...] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(config, match, seed=seed)
        self.pool = pool
        self.class_names = class_names
        width = head_width(pool, config, width=self.width)
        self.head = classifier_head(width, num_classes, class_names=class_names)

    @classmethod
    def from_pretrained(
        cls,
        model: "ViTMAE | ViTEncoder",
        *,
        num_classes: int,
        pool: Pool = "mean",
        class_names: tuple[str, ...] | None = None,
    ) -> "ViTClassifier":
        """A classifier that starts from a copy of a trained model's encoder, with a new head.

        Raises ValueError for a ViT-MAE that computes otherwise than the baseline of its sizes does.
        """
        config, match, vitmae = model.config, model.match, model.vitmae
        theirs, ours = vitmae.model.config.to_dict(), vitmae_config(config, match).to_dict()
        differing = [key for key in ARITHMETIC if theirs[key] != ours[key]]
        if differing:
            raise ValueError(
                "only ViT-MAEs that compute as our baselines do are fine-tuned; this one differs"
                " in "
                + ", ".join(f"{key} {theirs[key]!r} (not {ours[key]!r})" for key in differing)
            )
        classifier = cls(config, match, num_classes=num_classes, pool=pool, class_names=class_names)
        classifier.preprocess = model.preprocess
        classifier.vitmae.model.vit.load_state_dict(vitmae.model.vit.state_dict())
        return classifier

    def tensors_to_scores(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of the tensors on the way to the scores; its layers are not told."""
        yield "features (the layers of ViT-MAE are not looked into)", self.encode(images)
        yield "scores", self(images)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class scores (B, classes) of images (B, C, H, W).

        Raises ValueError for `keep`: transformers' ViT-MAE has no stochastic depth.
        """
        if keep is not None:
            raise ValueError("ViT-MAE has no stochastic depth: set optim.drop_path to 0")
        places = places_of(self.pool, None, self.config.depth)
        states = self.layer_tokens(images, places)
        return self.score(pooled([states[place] for place in places], self.pool))

    @property
    def pooled_layer(self) -> None:
        """None: tokens are pooled after the final norm."""
        return None

    def score(self, features: Tensor) -> Tensor:
        """Class scores (B, classes) of what was pooled (B, values of a row)."""
        scores: Tensor = self.head(features)
        return scores


def save_vit_classifier(
    model: ViTClassifier,
    folder: str | Path,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding what `load_vit_classifier` reads; as `save_model`."""
    described = encoder_facts(model) | head_facts(model.head, model.pool, model.class_names)
    return save_described(
        model, folder, described, model.preprocess, overwrite=overwrite, state=state
    )


def load_vit_classifier(folder: Path, described: dict[str, Any]) -> ViTClassifier:
    """The classifier, in eval mode, of a folder that `save_vit_classifier` wrote; `load_filled`."""

    def build(config: ModelConfig, match: Match) -> ViTClassifier:
        head: dict[str, Any] = described["classifier"]
        names = head["class_names"]
        return ViTClassifier(
            config,
            match,
            num_classes=head["num_classes"],
            pool=head["pool"],
            class_names=None if names is None else tuple(map(str, names)),
        )

    return load_filled(folder, described, build)
