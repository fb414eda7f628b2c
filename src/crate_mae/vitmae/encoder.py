"""A ViT encoder alone: what CrateEncoder is of ours, for fair comparisons."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from crate_mae.common.files import read_json_object
from crate_mae.models.config import ModelConfig, Preprocess
from crate_mae.vitmae.model import Match, ViTMAE, build_vitmae, vitmae_config
from crate_mae.weights.shipped import CONFIG, FILES, PREPROCESS, TENSORS
from crate_mae.weights.tensors import check_match, load_exactly, read_safetensors
from crate_mae.weights.weights_folder import check_complete, save_described

MODEL_TYPE = "vit_mae_encoder"


class ViTEncoder(nn.Module):
    """Features of images from the encoder of the ViT-MAE baseline of a configuration."""

    kind: ClassVar[str] = MODEL_TYPE
    """How `config.json` of its weights names it."""

    def __init__(
        self, config: ModelConfig, match: Match = "configuration", *, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.match: Match = match
        self.preprocess = Preprocess.identity(config)
        self.vitmae = build_vitmae(
            vitmae_config(config, match), preprocess=self.preprocess, seed=seed
        )
        self.vitmae.model.decoder = None

    @property
    def width(self) -> int:
        """Values of a token: not those of the configuration where parameters are matched."""
        return int(self.vitmae.model.config.hidden_size)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (B, 1 + L, d) of images (B, C, H, W) of any whole number of patches.

        Positions are interpolated (bicubic) for another size than the model's. Raises ValueError
        for `keep`: transformers' ViT-MAE has no stochastic depth.
        """
        if keep is not None:
            raise ValueError("ViT-MAE has no stochastic depth: set optim.drop_path to 0")
        return self.vitmae.unmasked(images, (None,), resized=True)[None]

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

    def tensors_to_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of the tensors on the way to the features; its layers are not told."""
        yield "features (the layers of ViT-MAE are not looked into)", self(images)

    def untrained(self, seed: int) -> ViTMAE:
        """A ViT-MAE of the same encoder with fresh weights."""
        return self.vitmae.untrained(seed)


def save_vit_encoder(
    model: ViTEncoder,
    folder: str | Path,
    *,
    overwrite: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding what `load_vit_encoder` reads; as `save_model`."""
    return save_described(
        model, folder, encoder_facts(model), model.preprocess, overwrite=overwrite, state=state
    )


def load_vit_encoder(folder: Path, described: dict[str, Any]) -> ViTEncoder:
    """The encoder, in eval mode, of a folder written by `save_vit_encoder`; as `load_filled`."""
    return load_filled(folder, described, ViTEncoder)


def encoder_facts(model: ViTEncoder) -> dict[str, Any]:
    """What is written of an encoder beside its tensors, in plain values."""
    return {"model_type": model.kind, "config": model.config.to_dict(), "match": model.match}


AnyEncoder = TypeVar("AnyEncoder", bound=ViTEncoder)


def load_filled(
    folder: Path, described: dict[str, Any], build: Callable[[ModelConfig, Match], AnyEncoder]
) -> AnyEncoder:
    """The model, in eval mode, that `build` makes of a folder's configuration, with its tensors.

    `described` is what its `config.json` holds. Raises FileNotFoundError for missing files,
    ValueError for damaged ones, IncompleteWeightsError when tensors are missing or do not fit.
    """
    check_complete(folder, FILES)
    try:
        config, match = ModelConfig.from_dict(described["config"]), described["match"]
        tensors = read_safetensors(folder / TENSORS)
        _check_filled(config, match, tensors)
        model = build(config, match)
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
