"""A classifier on a ViT-MAE encoder: what CrateClassifier is on ours, for fair comparisons."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from crate_mae.common.files import read_json_object
from crate_mae.models.classifier import Pool, classifier_head, head_facts, pool_tokens
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.vitmae.model import Match, ViTMAE, build_vitmae, vitmae_config
from crate_mae.weights.shipped import CONFIG, FILES, PREPROCESS, TENSORS
from crate_mae.weights.tensors import check_match, load_exactly, read_safetensors
from crate_mae.weights.weights_folder import check_complete, save_described

MODEL_TYPE = "vit_mae_classifier"
ARITHMETIC = (
    "hidden_size", "intermediate_size", "hidden_act", "layer_norm_eps", "qkv_bias",
    "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip
"""Settings of transformers that change what an encoder computes from the same weights."""


class ViTClassifier(nn.Module):
    """Class scores from a ViT-MAE encoder's class token or from the mean of its patch tokens.

    The encoder is that of the ViT-MAE baseline (`vitmae_config`) of a configuration.
    """

    kind: ClassVar[str] = MODEL_TYPE
    """How `config.json` of its weights names it."""

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
        super().__init__()
        self.config = config
        self.match: Match = match
        self.preprocess = Preprocess.identity(config)
        self.pool = pool
        self.class_names = class_names
        vitmae = build_vitmae(vitmae_config(config, match), preprocess=self.preprocess, seed=seed)
        vitmae.model.decoder = None
        self.vitmae = vitmae
        width = int(vitmae.model.config.hidden_size)
        self.head = classifier_head(width, num_classes, pool=pool, class_names=class_names)

    @classmethod
    def from_pretrained(
        cls,
        model: "ViTMAE | ViTClassifier",
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

    def recompute_layers(self) -> None:
        """Make training recompute layers in the backward pass to save memory."""
        self.vitmae.recompute_layers()

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W), as `ViTMAE.encode`."""
        return self.vitmae.encode(images)

    def layer_tokens(
        self, images: Tensor, layers: Sequence[int | None]
    ) -> dict[int | None, Tensor]:
        """Tokens (B, 1 + L, d) after each of so many encoder layers; None: as `encode`."""
        return self.vitmae.layer_tokens(images, layers)

    def untrained(self, seed: int) -> ViTMAE:
        """A ViT-MAE of the same encoder with fresh weights."""
        return self.vitmae.untrained(seed)

    def tensors_to_scores(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of the tensors on the way to the scores; its layers are not told."""
        tokens = self.encode(images)
        yield "features (the layers of ViT-MAE are not looked into)", tokens
        yield "scores", self.head(pool_tokens(tokens, self.pool))

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class scores (B, classes) of images (B, C, H, W).

        Raises ValueError for `keep`: transformers' ViT-MAE has no stochastic depth.
        """
        if keep is not None:
            raise ValueError("ViT-MAE has no stochastic depth: set optim.drop_path to 0")
        scores: Tensor = self.head(pool_tokens(self.encode(images), self.pool))
        return scores


def save_vit_classifier(
    model: ViTClassifier,
    folder: str | Path,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding what `load_vit_classifier` reads; as `save_model`."""
    described = {
        "model_type": MODEL_TYPE,
        "config": model.config.to_dict(),
        "match": model.match,
        **head_facts(model.head, model.pool, model.class_names),
    }
    return save_described(
        model, folder, described, model.preprocess, overwrite=overwrite, state=state
    )


def load_vit_classifier(folder: Path, described: dict[str, Any]) -> ViTClassifier:
    """The classifier, in eval mode, of a folder written by `save_vit_classifier`.

    `described` is what its `config.json` holds. Raises FileNotFoundError for missing files,
    ValueError for damaged ones, IncompleteWeightsError when tensors are missing or do not fit.
    """
    check_complete(folder, FILES)
    try:
        config = ModelConfig.from_dict(described["config"])
        head: dict[str, Any] = described["classifier"]
        names = head["class_names"]
        tensors = read_safetensors(folder / TENSORS)
        _check_filled(config, described["match"], tensors)
        model = ViTClassifier(
            config,
            described["match"],
            num_classes=head["num_classes"],
            pool=head["pool"],
            class_names=None if names is None else tuple(map(str, names)),
        )
        model.preprocess = Preprocess.from_dict(read_json_object(folder / PREPROCESS))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged: {error}") from error
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    check_match(shapes, model, origin=str(folder / TENSORS))
    load_exactly(model, tensors, origin=str(folder / TENSORS))
    return model.eval()


def _check_filled(config: ModelConfig, match: Match, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for more layers or wider ones than so many values can fill.

    A file from elsewhere may tell any size, and what it tells is built before it is compared.
    """
    sizes = vitmae_config(config, match)
    width, depth = int(sizes.hidden_size), int(sizes.num_hidden_layers)
    needed = depth * (4 * width**2 + 2 * width * int(sizes.intermediate_size))
    there = sum(tensor.numel() for tensor in tensors.values())
    if there < needed:
        raise ValueError(
            f"{there:,} values cannot fill {depth} layers of width {width}, which need {needed:,}"
        )
