"""Everything that fixes a run. Parsed from YAML and --key.sub value; nothing is computed here."""

import logging
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

from crate_mae.batches.config import Augment, DataConfig, LabelledDataConfig, Masking
from crate_mae.models.config import ModelConfig
from crate_mae.models.pools import Pool
from crate_mae.training.objectives import ObjectiveConfig, SimDINOConfig
from crate_mae.training.segment_config import SegmentConfig
from crate_mae.training.tracker_names import TrackerName, tracker_names
from crate_mae.vitmae.model import Match

SHORT_WARMUP = 0.1
"""Share of the epochs that warm up where the recipe's warm-up is longer than the run."""

logger = logging.getLogger(__name__)

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Method = Literal["masked", "simdino"]
Task = Literal["classify", "segment"]
HeadStart = Literal["random", "probe"]
SECTIONS: dict[str, tuple[str, ...]] = {
    "masked": ("masking", "objective"),
    "simdino": ("simdino",),
}
"""Sections of a pre-training run that have a meaning for one method alone."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, linear warm-up and cosine, per step."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 256
    """Images per optimiser step over all devices; the same recipe runs on any number of them."""
    base_lr: float = 1.5e-4
    """Learning rate per 256 images: the rate used is base_lr x batch_size / 256."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up; a tenth of the epochs where it would be longer than the run."""
    min_lr_ratio: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    weight_decay: float = 0.05
    """AdamW weight decay; none on norms, biases and tokens."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""
    clip: float | None = 1.0
    """Gradients are clipped to this norm; null for never."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"optim.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("base_lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"optim.{name} must be a finite number above 0, not {value}")
        if not 0 <= self.warmup_epochs < float("inf"):
            raise ValueError(
                f"optim.warmup_epochs must be a number of epochs, not {self.warmup_epochs}"
            )
        if self.warmup_epochs > self.epochs:
            shorter = SHORT_WARMUP * self.epochs
            logger.warning(
                "optim.warmup_epochs %g is longer than the whole run of %d epochs: it is %g here",
                self.warmup_epochs, self.epochs, shorter,
            )  # fmt: skip
            object.__setattr__(self, "warmup_epochs", shorter)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas must lie in [0, 1), not {self.betas}")
        if not 0 <= self.min_lr_ratio <= 1 or self.weight_decay < 0:
            raise ValueError(
                "optim.min_lr_ratio must be in [0, 1] and optim.weight_decay at least 0, not"
                f" {self.min_lr_ratio}, {self.weight_decay}"
            )

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.base_lr * self.batch_size / 256


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Where and how the run computes; passed on to Lightning's Trainer."""

    accelerator: str = "auto"
    """auto, cpu, gpu or mps."""
    devices: int | str = "auto"
    """Devices on each node; "auto" takes all GPUs, or one CPU process."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """auto, ddp or fsdp."""
    precision: Precision = "32-true"
    """32-true or bf16-mixed; 16-mixed only where bf16 does not exist."""
    tf32: bool = False
    """Let products of float32 matrices round what they multiply to TF32 (10 bits of mantissa), on
    NVIDIA GPUs and wherever else there is such a unit: several times as fast, exact to about 1e-3.
    """
    accumulate: int = 1
    """Batches accumulated per optimiser step; optim.batch_size stays the same."""
    compile: bool = False
    """Compile the model with torch.compile."""
    recompute: bool = False
    """Compute every layer once more in the backward pass instead of keeping what it needs: less
    memory, about a third more time, the same numbers (activation checkpointing)."""
    deterministic: bool = False
    """Only deterministic algorithms, on accelerators too."""
    loggers: tuple[TrackerName, ...] = ("tensorboard",)
    """Where a run can be followed beside its own files: any of tensorboard, csv, wandb, mlflow and
    trackio, as in [tensorboard, wandb]; [] for nowhere."""

    def __post_init__(self) -> None:
        for name, count in (("accumulate", self.accumulate), ("num_nodes", self.num_nodes)):
            if count < 1:
                raise ValueError(f"trainer.{name} must be at least 1, not {count}")
        if self.strategy == "fsdp" and self.accelerator == "cpu":
            raise ValueError(
                "trainer.strategy fsdp shards weights over GPUs; Lightning does not do it on CPUs:"
                " set trainer.strategy to ddp"
            )
        object.__setattr__(self, "loggers", tracker_names(self.loggers))


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What every run writes down, and how often."""

    log_every: int = 10
    """Optimiser steps between two lines of metrics."""
    checkpoint_steps: int | None = None
    """Also save the last checkpoint every so many optimiser steps within an epoch."""
    checkpoint_epochs: int = 10
    """Keep a checkpoint every so many epochs."""

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.checkpoint_epochs < 1:
            raise ValueError("record.log_every and record.checkpoint_epochs must be at least 1")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise ValueError(
                f"record.checkpoint_steps must be at least 1, not {self.checkpoint_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class RecordConfig(CheckpointConfig):
    """What a pre-training run writes down, and how often."""

    reconstruct_epochs: int = 5
    """Draw the fixed reconstructions of a masked run every so many epochs; 0 for never."""
    reconstruct_images: int = 8
    """How many fixed images are drawn."""
    measure_epochs: int = 5
    """Where there are labels, try held-out images by nearest neighbours and a linear probe every so
    many epochs. Rank and coding rate of their features are measured at each validation. 0: none of
    it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reconstruct_images < 1 or self.reconstruct_epochs < 0:
            raise ValueError(
                "record.reconstruct_images must be at least 1 and record.reconstruct_epochs at"
                f" least 0, not {self.reconstruct_images}, {self.reconstruct_epochs}"
            )
        if self.measure_epochs < 0:
            raise ValueError(f"record.measure_epochs must be at least 0, not {self.measure_epochs}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What all kinds of run have in common."""

    name: str
    """Name of the run; its folder is runs/NAME unless --out says otherwise."""
    seed: int = 0
    """Fixes everything random."""
    model: ModelConfig | None = None
    """The architecture."""
    vitmae: Match | None = None
    """Train the ViT-MAE baseline of `model` in its place, for a comparison."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Hardware."""
    record: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Logs and checkpoints."""

    def __post_init__(self) -> None:
        if not self.name or self.name in (".", "..") or set(self.name) & set("/\\\0"):
            raise ValueError(
                f"the name of a run becomes a folder below runs/, so {self.name!r} cannot be one;"
                " --out names any other place"
            )
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must be from 0 to {(1 << 31) - 1}, not {self.seed}")
        if self.trainer.strategy == "fsdp" and self.model is not None:
            for name in ("orthonormal_subspaces", "bounded_steps", "mirrored_decoder"):
                if getattr(self.model, name):
                    raise ValueError(
                        f"model.{name} needs whole weights on each device: not trainer.strategy"
                        " fsdp"
                    )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as YAML holds them: single settings first, then sections."""
        return dict(sorted(plain(self).items(), key=lambda item: isinstance(item[1], dict)))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """One pre-training run."""

    name: str = "pretrain"
    """Name of the run; its folder is runs/NAME unless --out says otherwise."""
    seed: int = 0
    """Fixes initial weights, data order, augmentation and masks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The architecture."""
    vitmae: Match | None = None
    """Train the ViT-MAE baseline of `model` in its place, for a comparison: of the same
    configuration, or of nearly the same number of parameters; null to train `model` itself."""
    method: Method = "masked"
    """What is learned from: images completed under masks ("masked": the paper), or views of each
    image that are told to agree ("simdino": encoders alone, no decoder)."""
    masking: Masking = field(default_factory=Masking)
    """Which patches are removed; of method masked."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is trained on beside the masked loss; of method masked."""
    simdino: SimDINOConfig = field(default_factory=SimDINOConfig)
    """Views, teacher, head and loss; of method simdino."""
    record: RecordConfig = field(default_factory=RecordConfig)
    """Logs, checkpoints, pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in get_args(Method):
            raise ValueError(
                f"method must be one of {', '.join(get_args(Method))}, not {self.method!r}"
            )
        for section in self._foreign_sections:
            if getattr(self, section) != type(getattr(self, section))():
                raise ValueError(
                    f"the section {section} has no meaning with method {self.method}: leave it out,"
                    " or choose another method"
                )
        if self.method == "simdino":
            self._check_simdino()
        else:
            self._check_masked()

    @property
    def _foreign_sections(self) -> list[str]:
        """Sections that have a meaning for other methods alone."""
        return [name for key, own in SECTIONS.items() if key != self.method for name in own]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as YAML holds them, without sections of other methods."""
        values = super().to_dict()
        return {key: value for key, value in values.items() if key not in self._foreign_sections}

    def _check_simdino(self) -> None:
        if self.data.augment != Augment():
            raise ValueError(
                "data.augment makes one view of an image; method simdino makes several, by"
                " simdino.crops: leave data.augment out"
            )
        if self.data.on_device:
            raise ValueError(
                "data.on_device makes one view of an image, method simdino several: leave it out"
            )
        if self.vitmae == "parameters":
            raise ValueError(
                "vitmae=parameters makes whole autoencoders equally large, and method simdino"
                " trains encoders: set vitmae to configuration"
            )
        if self.trainer.strategy == "fsdp":
            raise ValueError(
                "method simdino needs whole weights on each device, for its teacher: not"
                " trainer.strategy fsdp"
            )

    def _check_masked(self) -> None:
        self.masking.check(self.model.grid)
        if not self.masking.batchable and self.visible_only:
            why = "vitmae" if self.vitmae else "model.mask_tokens=decoder"
            raise ValueError(
                "masking.ratio_max gives images different numbers of visible patches, which"
                f" visible-only encoding ({why}) cannot batch; use one ratio, or"
                " masking.ratio_per=step"
            )
        if not self.masking.batchable and self.objective.features == "tokens":
            raise ValueError(
                "masking.ratio_max gives images different numbers of visible patches, which"
                " objective.features=tokens cannot batch; use one ratio, masking.ratio_per=step or"
                " pooled features"
            )
        layer = self.objective.layer
        if layer == 0 and self.objective.features == "class_token" and self.objective.gamma > 0:
            raise ValueError(
                "before the first layer (objective.layer 0) class tokens are the same for all"
                " images, so that their coding rate cannot be raised: use pooled features or a"
                " later layer"
            )
        if layer is not None and not 0 <= layer <= self.model.depth:
            raise ValueError(
                f"objective.layer must be from 0 to model.depth {self.model.depth}, not {layer}"
            )

    @property
    def looks_ahead(self) -> bool:
        """Whether all batches of an accumulated step are needed before its first gradient."""
        of_step = (
            self.simdino.reduce_cov if self.method == "simdino" else self.objective.looks_ahead
        )
        return of_step and self.trainer.accumulate > 1

    @property
    def visible_only(self) -> bool:
        """Whether the encoder sees visible patches alone."""
        return self.vitmae is not None or self.model.mask_tokens == "decoder"


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimConfig(OptimConfig):
    """As for pre-training, and what keeps a classifier from forgetting and from overfitting."""

    base_lr: float = 1e-3
    """Learning rate per 256 images: the rate used is base_lr x batch_size / 256."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    layer_decay: float = 1.0
    """Learning rate of each layer, as a share of the layer's above; 1 for the same rate everywhere.
    """
    drop_path: float = 0.0
    """Stochastic depth: probability that an image leaves out the last layer's MSSA step; it grows
    evenly from 0 at the first layer."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes."""
    ema: float | None = None
    """Decay per step of a running average of the weights, such as 0.999, which is then validated,
    saved and tested; null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay must be in (0, 1], not {self.layer_decay}")
        for name in ("drop_path", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} must be in [0, 1), not {getattr(self, name)}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"optim.ema must be between 0 and 1, not {self.ema}")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """One supervised run: fine-tuning of pre-trained weights, or training from scratch."""

    name: str = "finetune"
    """Name of the run; its folder is runs/NAME unless --out says otherwise."""
    seed: int = 0
    """Fixes initial weights, few-shot choice, data order, augmentation and dropped steps."""
    task: Task = "classify"
    """What is learned: the class of each image, or ("segment") that of each pixel, from masks."""
    weights: str | None = None
    """Weights folder, run folder, shipped model or Hub repository; null to train from scratch."""
    model: ModelConfig | None = None
    """The architecture; that of the weights when there are any."""
    vitmae: Match | None = None
    """Train a classifier on the ViT-MAE baseline of `model` in its place, for a comparison; of
    weights that are a ViT-MAE's it is always "configuration"."""
    image_size: int | tuple[int, int] | None = None
    """Height and width of the images; as the weights were trained when not given."""
    pool: Pool = "mean"
    """What the head sees: the mean of the patch tokens, the class token (cls), the mean of both
    (mean-all), mean and standard deviation of the patch tokens (mean-std), or those of up to four
    places in the encoder (layers)."""
    new_head: bool = False
    """Replace the head of weights that have one for the task already."""
    head_start: HeadStart = "random"
    """How a new head begins: with small random weights, or as the linear probe of the training
    images' features (probe), so that fine-tuning begins where the probe ends."""
    evaluate: Literal["last", "best"] = "last"
    """Weights that are tested: those of the last epoch, or of the best one on held-out images."""
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    """Masks, classes and head; of task segment."""
    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    """The images."""
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    """Optimiser, schedule, regularisation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        data = self.data
        if self.evaluate == "best" and not (data.val_share or data.val_source or data.val_split):
            raise ValueError(
                "evaluate=best chooses an epoch by images that are held out of training: set"
                " data.val_share, or name a validation split with data.val_split"
            )
        if self.vitmae is not None and self.optim.drop_path:
            raise ValueError("ViT-MAE has no stochastic depth: set optim.drop_path to 0")
        if self.optim.ema is not None and self.trainer.strategy == "fsdp":
            raise ValueError(
                "optim.ema needs whole weights on each device: not trainer.strategy fsdp"
            )
        if self.head_start not in get_args(HeadStart):
            raise ValueError(
                f"head_start must be one of {', '.join(get_args(HeadStart))}, not"
                f" {self.head_start!r}"
            )
        if self.task not in get_args(Task):
            raise ValueError(f"task must be one of {', '.join(get_args(Task))}, not {self.task!r}")
        if self.task == "segment":
            self._check_segment()
        elif self.segment != SegmentConfig():
            raise ValueError(
                f"the section segment has no meaning with task {self.task}: leave it out, or set"
                " task to segment"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as YAML holds them, without the section of another task."""
        values = super().to_dict()
        return {k: v for k, v in values.items() if k != "segment" or self.task == "segment"}

    def _check_segment(self) -> None:
        """Raise ValueError for what is about classes of whole images, and without masks."""
        self.segment.masks_of("train")
        augment, data = self.data.augment, self.data
        of_images = {
            "data.augment.rand_augment": augment.rand_augment > 0,
            "data.augment.erasing": augment.erasing > 0,
            "data.augment.mixup": augment.mixup > 0,
            "data.augment.cutmix": augment.cutmix > 0,
            "data.shots": data.shots is not None,
            "data.share": data.share is not None,
            "data.label_key": data.label_key is not None,
            "data.on_device": data.on_device,
            "pool": self.pool != "mean",
            "head_start": self.head_start != "random",
        }
        if strange := [name for name, given in of_images.items() if given]:
            raise ValueError(
                f"{', '.join(strange)} is about classes of images, and task segment learns those of"
                " pixels: leave it out (data.limit takes fewer images)"
            )
        if self.vitmae is not None:
            raise ValueError(
                "a segmentation head is trained on a CRATE encoder, not on a ViT-MAE's: leave"
                " vitmae out, or start from other weights"
            )
        if self.segment.freeze and self.optim.drop_path:
            raise ValueError(
                "segment.freeze leaves the encoder as it is: set optim.drop_path to 0, which leaves"
                " steps of it out"
            )
        if self.segment.freeze and self.trainer.strategy == "fsdp":
            raise ValueError(
                "segment.freeze trains a part of the weights, which are not sharded by themselves:"
                " not trainer.strategy fsdp"
            )

    @property
    def image_hw(self) -> tuple[int, int] | None:
        """Height and width of the images, or None for those of the weights."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


def plain(value: Any) -> Any:
    """A setting, or a section of settings, as YAML holds it: names to values, lists for tuples."""
    if isinstance(value, ModelConfig):
        return plain(value.to_dict())
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
