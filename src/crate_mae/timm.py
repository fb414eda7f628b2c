"""CRATE-MAE in timm: importing this registers its presets and the shipped weights.

    import timm
    import crate_mae.timm

    model = timm.create_model("crate_mae_base_patch16_224", num_classes=10)
    model = timm.create_model("local-dir:FOLDER", pretrained=True)  # a weights folder

Without `pretrained=True` timm draws fresh weights, of a folder, too, and says nothing.

Needs `pip install "crate-mae[timm]"`; nothing else of the package imports it.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import (
    VisionTransformer,
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from crate_mae.common.files import read_json_object
from crate_mae.models.config import IMAGENET_MEAN, IMAGENET_STD, PRESETS, ModelConfig, Preprocess
from crate_mae.models.initial_values import INITIAL_VALUES
from crate_mae.models.operators import operators_of
from crate_mae.models.patches import sincos_positions
from crate_mae.weights.one_folder import timm_cfg, unsupported_by_timm
from crate_mae.weights.shipped import CONFIG, PREPROCESS, SHIPPED, TENSORS

PREFIX = "crate_mae"
"""How the name of every model begins; the bare name is that of any configuration."""
MODULE = __name__.rpartition(".")[2]
"""The name under which timm lists the models of this module."""


@register_notrace_module
class CrateBlock(nn.Module):
    """An encoder layer of any configuration as a block of timm.

    TorchScript takes it as a trace, since operators are free to do what scripts cannot say; a
    script leaves stochastic depth out.
    """

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        one = replace(config, depth=1, decoder_depth=1)
        self.layer = operators_of(config).encoder_layers(one)[0]
        self.drop_path = DropPath(drop_path)
        self.example_shape = (2, 1 + config.num_patches, config.dim)

    def forward(self, z: Tensor) -> Tensor:
        """Tokens (B, N, d) after the layer.

        In training its attention step is left out of an image with probability `drop_path`.
        """
        keep = None
        if self.training and self.drop_path.drop_prob:
            keep = self.drop_path(z.new_ones(z.shape[0]))
        tokens: Tensor = self.layer(z, keep)
        return tokens

    def __prepare_scriptable__(self) -> nn.Module:
        example = next(self.parameters()).new_zeros(self.example_shape)
        traced: nn.Module = torch.jit.trace(  # type: ignore[no-untyped-call]
            self.layer, example, check_trace=False
        )
        return traced


class CrateTransformer(VisionTransformer):
    """A CRATE encoder as timm's VisionTransformer, with a linear head on pooled tokens.

    It has all that timm's own have: pools, image sizes, pruning, features of layers, groups for
    layer decay. Positions are a buffer, computed for any grid in the coordinates of the
    configuration's own. `img_size`, `patch_size` and `in_chans` may differ from it.
    Raises ValueError for a configuration or a pool that is `unsupported_by_timm`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        in_chans: int | None = None,
        weight_init: str = "",
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        if foreign := unsupported_by_timm(config, kwargs.get("global_pool")):
            raise ValueError(
                f"timm's vision transformers have no {', '.join(foreign)}: load the weights with"
                " crate_mae.load_model"
            )
        place = torch.get_default_device() if device is None else torch.device(device)

        def block(*, drop_path: float = 0.0, **_: Any) -> CrateBlock:
            with place:
                return CrateBlock(config, drop_path=drop_path).to(dtype=dtype)

        super().__init__(
            img_size=config.image_hw if img_size is None else img_size,
            patch_size=config.patch_hw if patch_size is None else patch_size,
            in_chans=config.channels if in_chans is None else in_chans,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            block_fn=block,
            pos_embed="none",
            fc_norm=False,  # with an average pool timm would move the final norm behind it
            norm_layer=partial(nn.LayerNorm, eps=config.final_norm_eps),
            weight_init="skip",
            device=device,
            dtype=dtype,
            **kwargs,
        )
        self.config = config
        del self.pos_embed
        self.register_buffer("pos_embed", self._own_positions(), persistent=False)
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Set the initial values of the family, whatever the `mode`; blocks where asked for."""
        values = INITIAL_VALUES[self.config.initial_values]
        values.patches(self.patch_embed.proj)
        nn.init.normal_(self.cls_token, std=values.class_token)
        if isinstance(self.head, nn.Linear):
            values.head(self.head)
        if needs_reset:
            self.pos_embed = self._own_positions()
            for block in self.blocks:
                block.load_state_dict(CrateBlock(self.config).state_dict())

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone."""
        return {"cls_token"}

    def set_input_size(
        self,
        img_size: tuple[int, int] | None = None,
        patch_size: tuple[int, int] | None = None,
    ) -> None:
        """Set another image size, and patch size, to be fed from now on."""
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        self.pos_embed = self._own_positions()
        update_model_input_size(self, self.patch_embed.img_size, patch_size=patch_size)

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + L, d) of images (B, C, H, W) after the final norm."""
        x = self.patch_drop(self._pos_embed(self.patch_embed(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        tokens: Tensor = self.norm(x)
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, classes) of images (B, C, H, W), or pooled tokens without classes."""
        scores: Tensor = self.forward_head(self.forward_features(x))
        return scores

    def _pos_embed(self, x: Tensor) -> Tensor:
        if self.dynamic_img_size:
            table = self._positions_of(x.shape[1], x.shape[2]).to(x)
            x = x.view(x.shape[0], -1, x.shape[3])
        else:
            table = self.pos_embed
        class_token = self.cls_token.expand(x.shape[0], -1, -1)
        tokens: Tensor = self.pos_drop(torch.cat([class_token, x], dim=1) + table)
        return tokens

    @torch.jit.ignore
    def _positions_of(self, rows: int, columns: int) -> Tensor:
        grid, own = (rows, columns), self.config.grid
        return sincos_positions(self.embed_dim, grid, reference_grid=own)

    def _own_positions(self) -> Tensor:
        rows, columns = self.patch_embed.grid_size
        with torch.device("cpu"):
            table = self._positions_of(rows, columns)
        placed: Tensor = table.to(self.cls_token.device, self.cls_token.dtype)
        return placed


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,  # noqa: ARG001 - timm's signature
) -> dict[str, Tensor]:
    """The encoder's and the head's tensors of a weights folder under the names they have here.

    Tensors that have such names already are passed on as they are.
    """
    if "encoder.class_token" not in state_dict:
        return dict(state_dict)
    renamed = {}
    for key, value in state_dict.items():
        part, _, rest = key.partition(".")
        if part == "head":
            renamed[key] = value
        elif part == "encoder":
            first, _, last = rest.partition(".")
            if first == "layers":
                index, _, name = last.partition(".")
                renamed[f"blocks.{index}.layer.{name}"] = value
            else:
                names = {"patch_embed": "patch_embed.proj", "class_token": "cls_token"}
                renamed[".".join(filter(None, (names.get(first, first), last)))] = value
    return renamed


def _build(variant: str, config: ModelConfig, pretrained: bool, **kwargs: Any) -> CrateTransformer:
    model: CrateTransformer = build_model_with_cfg(
        CrateTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": min(3, config.depth), "feature_cls": "getter"},
        config=config,
        **kwargs,
    )
    return model


def _entry_point(name: str, own: ModelConfig) -> Callable[..., CrateTransformer]:
    """What timm calls to make the model of this name."""

    def create(
        pretrained: bool = False, config: dict[str, Any] | None = None, **kwargs: Any
    ) -> CrateTransformer:
        made = own if config is None else ModelConfig.from_dict(config)
        kwargs.setdefault("global_pool", "avg")  # as our classifiers pool
        return _build(name, made, pretrained, **kwargs)

    height, width = own.image_hw
    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"A CRATE encoder: width {own.dim}, {own.depth} layers, {height} x {width}."
    return create


def _preset_name(preset: str, config: ModelConfig) -> str:
    patch, size = (
        str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"
        for pair in (config.patch_hw, config.image_hw)
    )
    return f"{PREFIX}_{preset.replace('-', '_')}_patch{patch}_{size}"


def _imagenet(config: ModelConfig) -> Preprocess:
    """ImageNet's statistics, or none at all for other numbers of channels."""
    if config.channels != 3:
        return Preprocess.identity(config)
    return Preprocess(size=config.image_hw, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _all_models() -> tuple[dict[str, ModelConfig], dict[str, dict[str, Any]]]:
    """(configuration of every model, what timm must know of it), by name."""
    models = {PREFIX: ModelConfig()}
    models |= {
        _preset_name(preset, config): config
        for preset, config in PRESETS.items()
        if not unsupported_by_timm(config)
    }
    facts = {
        name: timm_cfg(config, _imagenet(config), num_classes=1000)
        for name, config in models.items()
    }
    for shipped in SHIPPED.values():
        name = f"{PREFIX}_{shipped.name.replace('-', '_')}"
        described = read_json_object(shipped.folder / CONFIG)
        models[name] = ModelConfig.from_dict(described["config"])
        prepared = Preprocess.from_dict(read_json_object(shipped.folder / PREPROCESS))
        facts[name] = {
            **timm_cfg(models[name], prepared, num_classes=0),
            "file": str(shipped.folder / TENSORS),
        }
    return models, facts


_MODELS, _FACTS = _all_models()
default_cfgs = generate_default_cfgs(_FACTS)
__all__ = ["CrateBlock", "CrateTransformer", "checkpoint_filter_fn"]
for _name, _config in _MODELS.items():
    setattr(sys.modules[__name__], _name, register_model(_entry_point(_name, _config)))
