"""What a recipe trains: its size, its cost, and a real step of it on generated images."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from crate_mae.evaluation.backbones import (
    build_autoencoder,
    build_classifier,
    build_segmenter,
    load_backbone,
)
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.backbone import ImageClassifier, MaskedAutoencoder
from crate_mae.models.coding_rate import rate_share
from crate_mae.models.config import ModelConfig
from crate_mae.models.cost import counted_flops, model_cost, parameter_count
from crate_mae.models.depict import CrateSegmenter
from crate_mae.models.mask_classes import MaskClasses
from crate_mae.models.simdino import GLOBAL_VIEWS
from crate_mae.training.classification import Classification
from crate_mae.training.config import FinetuneConfig, PretrainConfig
from crate_mae.training.finetune import resolved
from crate_mae.training.masked_completion import MaskedCompletion
from crate_mae.training.optim import can_fuse
from crate_mae.training.rate_term import coding_rate_of
from crate_mae.training.segmentation import Segmentation
from crate_mae.training.self_distillation import (
    SelfDistillation,
    self_distillation,
    view_network,
)
from crate_mae.training.supervised_module import SupervisedModule
from crate_mae.training.training_module import TrainingModule
from crate_mae.vitmae.model import vitmae_config

RunSettings = PretrainConfig | FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run as far as its cost goes; what it computes on is generated."""

    config: RunSettings
    """With the architecture filled in."""
    image_hw: tuple[int, int]
    """Height and width that training images are brought to."""
    classes: int = 0
    """Classes of a supervised run."""

    @property
    def model(self) -> ModelConfig:
        """The architecture."""
        assert self.config.model is not None
        return self.config.model

    @property
    def tokens(self) -> tuple[int, int | None]:
        """Tokens per image in the encoder and in the decoder (None without one)."""
        (height, width), (rows, columns) = self.image_hw, self.model.patch_hw
        every = 1 + (height // rows) * (width // columns)
        if not self.masked:
            return every, None
        assert isinstance(self.config, PretrainConfig)
        kept = self.config.masking.kept((height // rows, width // columns))
        return (1 + kept if self.config.visible_only else every), every

    @property
    def masked(self) -> bool:
        """Whether images are completed under masks."""
        return isinstance(self.config, PretrainConfig) and self.config.method == "masked"

    @property
    def average(self) -> bool:
        """Whether a running average of the weights, or a teacher, is kept."""
        if isinstance(self.config, FinetuneConfig):
            return self.config.optim.ema is not None
        return not self.masked

    def parameters(self) -> int:
        """Trainable parameters."""
        if self.config.vitmae is not None:
            return parameter_count(self._network())  # that library needs values
        with torch.device("meta"):
            return parameter_count(self._network())

    def frozen(self) -> int:
        """Parameters of the encoder where the run leaves it as it is (`segment.freeze`); else 0."""
        config = self.config
        if not (isinstance(config, FinetuneConfig) and config.task == "segment"):
            return 0
        if not config.segment.freeze:
            return 0
        with torch.device("meta"):
            encoder = cast("CrateSegmenter", self._supervised(config)).encoder
            return sum(parameter.numel() for parameter in encoder.parameters())

    def flops(self, images: int) -> int:
        """Floating-point operations of one pass forward and backward on so many images.

        All that is done: with `trainer.recompute`, layers are computed twice.
        """
        if self.config.vitmae is not None:  # which has no folded map: every image costs the same
            module, batch = self.module(), self.batch(1)
            return images * counted_flops(lambda: torch.autograd.backward(module.loss(batch)))
        if not self.masked:
            with torch.device("meta"):  # the head's initial values cannot be drawn without values
                module = self.module()
            with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
                module.to_empty(device="cpu")
                batch = self.batch(images)
                return counted_flops(lambda: torch.autograd.backward(module.loss(batch)))
        assert isinstance(self.config, PretrainConfig)
        masked = model_cost(
            self.model,
            batch=images,
            ratio=1 - (self.config.masking.kept(self.model.grid) + 0.5) / self.model.num_patches,
            recompute=self.config.trainer.recompute,
        ).step
        return masked + self._rate_flops(images, self.config)

    def _rate_flops(self, images: int, config: PretrainConfig) -> int:
        """Operations of the coding-rate term, with the pass that looks ahead where there is one."""
        objective = config.objective
        if objective.gamma == 0:
            return 0
        kept = config.masking.kept(self.model.grid)
        with FakeTensorMode(), torch.random.fork_rng(devices=[]):
            rows = [images, kept] if objective.features == "tokens" else [images]
            features = torch.empty(*rows, self.model.dim, requires_grad=True)
            found = counted_flops(
                lambda: torch.autograd.backward(rate_share(features, eps_squared=1.0)[0].sum())
            )
            if config.looks_ahead:
                model = CrateMAE(self.model)
                pixels = torch.empty(images, self.model.channels, *self.image_hw)
                mask = torch.empty(images, self.model.num_patches, dtype=torch.bool)
                with torch.no_grad():
                    found += counted_flops(lambda: model.encode_masked(pixels, mask, kept))
        return found

    def module(self) -> TrainingModule:
        """The module of such a run, with fresh weights."""
        config = self.config
        if isinstance(config, FinetuneConfig):
            model = self._supervised(config)
            if config.trainer.recompute:
                model.recompute_layers()
            kind = Classification if config.task == "classify" else Segmentation
            return kind(model, optim=config.optim, seed=config.seed)
        if config.method == "simdino":
            network = view_network(config)
            if config.trainer.recompute:
                network.backbone.recompute_layers()
            return self_distillation(config, network)
        autoencoder = self._autoencoder(config)
        if config.trainer.recompute:
            autoencoder.recompute_layers()
        kept = config.masking.kept(self.model.grid)
        return MaskedCompletion(
            autoencoder,
            coding_rate=coding_rate_of(config),
            layer=config.objective.layer,
            kept=kept if config.visible_only and config.masking.one_count else None,
            optim=config.optim,
            seed=config.seed,
        )

    def _network(self) -> nn.Module:
        config = self.config
        if isinstance(config, FinetuneConfig):
            return cast("nn.Module", self._supervised(config))
        if config.method == "simdino":
            return view_network(config)
        return cast("nn.Module", self._autoencoder(config))

    def _supervised(self, config: FinetuneConfig) -> ImageClassifier | CrateSegmenter:
        if config.task == "segment":
            numbered = MaskClasses.numbered(self.classes)
            segmenter = build_segmenter(self.model, head=config.segment.head, classes=numbered)
            segmenter.encoder.requires_grad_(not config.segment.freeze)
            return segmenter
        return build_classifier(
            self.model,
            vitmae=config.vitmae,
            seed=config.seed,
            num_classes=self.classes,
            pool=config.pool,
        )

    def _autoencoder(self, config: PretrainConfig) -> MaskedAutoencoder:
        return build_autoencoder(self.model, vitmae=config.vitmae, seed=config.seed)

    def batch(self, images: int) -> dict[str, Any]:
        """A generated batch as the run's own module takes it, on the CPU."""
        config = self.config
        pixels = torch.randn(images, self.model.channels, *self.image_hw)
        if isinstance(config, PretrainConfig) and config.method == "simdino":
            crops, channels = config.simdino.crops, self.model.channels
            crops_of = {
                "global_crops": torch.randn(GLOBAL_VIEWS, images, channels, *self.image_hw),
                "local_crops": torch.randn(crops.local_views, images, channels, *crops.local_hw),
            }
            return {**crops_of, "whole_step": [crops_of]} if config.looks_ahead else crops_of
        if isinstance(config, PretrainConfig):
            draw = functools.partial(
                config.masking.draw,
                self.model.grid,
                config.seed,
                0,
                ratio=config.masking.step_ratio(config.seed, 0),
            )
            batch = {"images": pixels, "mask": torch.stack([draw(i) for i in range(len(pixels))])}
            if config.looks_ahead:
                return {**batch, "whole_step": [batch]}  # its share of the pass that looks ahead
            return batch
        drops = config.optim.drop_path > 0
        keep = torch.ones(self.model.depth, images) if drops else None
        if config.task == "segment":
            masks = torch.zeros(images, *self.image_hw, dtype=torch.int64)
            return {"images": pixels, "masks": masks, "keep": keep}
        targets = torch.zeros(images, dtype=torch.int64)
        if config.data.augment.mixes:
            targets = torch.full((images, self.classes), 1 / self.classes)
        return {"images": pixels, "targets": targets, "keep": keep}


def planned_run(config: RunSettings) -> PlannedRun:
    """The subject of a configuration; a supervised one takes its architecture from its weights.

    How many classes it has is for the caller to fill in.
    Raises ValueError for a supervised run without architecture, and what loading weights raises.
    """
    if isinstance(config, PretrainConfig):
        if config.vitmae is not None:
            vitmae_config(config.model, config.vitmae)
        return PlannedRun(config=config, image_hw=config.model.image_hw)
    if config.weights is None and config.model is None:
        raise ValueError(
            "this recipe names no architecture: add --weights WEIGHTS, or --from-scratch SIZE with"
            " a preset such as base"
        )
    origin = None if config.weights is None else load_backbone(config.weights)[0]
    whole = resolved(config, origin)
    assert whole.model is not None
    own = whole.model.image_hw if origin is None else origin.preprocess.size
    return PlannedRun(config=whole, image_hw=config.image_hw or own)


def make_step(subject: PlannedRun, images: int, device: str, precision: str) -> Callable[[], None]:
    """One micro-batch of a run: forward, backward, clipping, AdamW, in Lightning's order."""
    config = subject.config
    module = subject.module().to(device)
    batch = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in subject.batch(images).items()
    }
    optim = config.optim
    optimizer = module.adamw(fused=can_fuse(device, precision))
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    clip = float("inf") if optim.clip is None else optim.clip

    def step() -> None:
        with _precision(precision, device):
            loss = module.loss(batch)
        # The gradients of the step before live until here; accumulated ones for longer.
        if config.trainer.accumulate == 1:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        if isinstance(module, SupervisedModule):
            module.update_average()
        elif isinstance(module, SelfDistillation):
            module.move_teacher(module.simdino.teacher_momentum)

    return step


def _precision(precision: str, device: str) -> contextlib.AbstractContextManager[object]:
    if precision == "32-true":
        return contextlib.nullcontext()
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    return torch.autocast(device, dtype=kind)
