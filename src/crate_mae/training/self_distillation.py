"""Self-distillation as a LightningModule: SimDINO's losses, its teacher, validation."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crate_mae.batches.crops import CropBatch
from crate_mae.evaluation.backbones import build_encoder
from crate_mae.models.backbone import Backbone
from crate_mae.models.config import Preprocess
from crate_mae.models.crate_encoder import CrateEncoder
from crate_mae.models.simdino import (
    GLOBAL_VIEWS,
    ProjectionHead,
    compression,
    expanded_features,
    expansion,
    expansion_of_covariances,
    largest_expansion,
)
from crate_mae.training.average import RunningAverage
from crate_mae.training.config import PretrainConfig
from crate_mae.training.nonfinite import locate_nonfinite
from crate_mae.training.objectives import SimDINOConfig
from crate_mae.training.optim import teacher_momentum
from crate_mae.training.training_module import TrainingModule
from crate_mae.training.whole_step import WholeStep
from crate_mae.vitmae.encoder import ViTEncoder


class ViewNetwork(nn.Module):
    """Features of views: an encoder's class token, through a head. Student and teacher are one."""

    def __init__(self, backbone: CrateEncoder | ViTEncoder, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, *crops: Tensor) -> Tensor:
        """Features (V, B, p) of views (v, B, C, H, W) of one or more sizes, in their order."""
        tokens = [self.backbone(views.flatten(0, 1))[:, 0] for views in crops if len(views)]
        features: Tensor = self.head(torch.cat(tokens))
        return features.view(-1, crops[0].shape[1], features.shape[-1])

    def tensors_to_features(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every tensor on the way to the features of images (B, C, H, W)."""
        for name, tensor in self.backbone.tensors_to_features(images):
            yield name, tensor
            tokens = tensor
        yield "projection", self.head(tokens[:, 0])


class SelfDistillation(TrainingModule):
    """Trains an encoder, of any family, by SimDINO.

    The teacher begins as the student and follows it after every optimiser step; its encoder is what
    is validated, measured and saved, as by the authors.
    """

    model: ViewNetwork

    def __init__(
        self, model: ViewNetwork, *, simdino: SimDINOConfig, accumulate: int, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        self.simdino = simdino
        self.teacher = RunningAverage(model, from_start=True)
        self.weights_prefix = "teacher.module.backbone."
        self.leave_buffers_alone()
        self._whole_step = WholeStep(accumulate)

    @property
    def backbone(self) -> Backbone:
        """The teacher's encoder."""
        network: Any = self.teacher.module
        backbone: Backbone = network.backbone
        return backbone

    def loss(self, batch: CropBatch) -> Tensor:
        """The loss of a batch: compression of its views, and the expansion of the step or batch."""
        settings = self.simdino
        student, teacher = self.views(batch)
        agreed = compression(student, teacher)
        features = expanded_features(student, teacher, expa_type=settings.expa_type)
        images = features.shape[1] * self._devices
        if settings.reduce_cov:
            # Images come first, for they are what devices and batches share.
            step = self._whole_step(batch, features.transpose(0, 1), self._expanded)
            features = step.transpose(0, 1)
            images = features.shape[1]
        dtype = torch.float64 if settings.float64 else torch.float32
        spread = expansion(features, eps=settings.eps, images=images, dtype=dtype)
        most = largest_expansion(*features.shape[1:], eps=settings.eps, images=images)
        self.watch("train/compression", agreed.detach())
        self.watch("train/expansion", spread.detach())
        self.watch("train/largest_expansion", spread.new_tensor(most))
        return -settings.coefficient * agreed - spread

    def views(self, batch: CropBatch) -> tuple[Tensor, Tensor]:
        """Features (V, B, p) of the student and (2, B, p), of global crops, of the teacher."""
        with torch.no_grad():
            teacher: Tensor = self.teacher(batch["global_crops"])
        student: Tensor = self.model(batch["global_crops"], batch["local_crops"])
        return student, teacher

    def _expanded(self, batch: CropBatch) -> Tensor:
        """The features (B, 2, p) of a batch whose coding rate is raised."""
        crops = batch["global_crops"]
        features = expanded_features(
            self.model(crops), self.teacher(crops), expa_type=self.simdino.expa_type
        )
        return features.transpose(0, 1)

    @property
    def _devices(self) -> int:
        together = dist.is_available() and dist.is_initialized()
        return dist.get_world_size() if together else 1

    def locate_nonfinite(self, batch: CropBatch) -> str:
        """Where the way to a batch's loss stops being finite."""
        for crops in (batch["global_crops"], batch["local_crops"]):
            images = crops.flatten(0, 1)
            if len(images):
                where = locate_nonfinite(self.model, images, self.model.tensors_to_features(images))
                if where != "not found":
                    return where
        return "loss"  # its features are still finite

    def after_step(self, step: int) -> None:
        """Move the teacher."""
        total = self.images.steps_per_epoch * self.optim.epochs
        self.move_teacher(teacher_momentum(step, total=total, start=self.simdino.teacher_momentum))

    def move_teacher(self, momentum: float) -> None:
        """Move the teacher toward the student; `momentum` is the share of itself that it keeps."""
        self.teacher.follow(self.model, momentum)

    # -- validation ---------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        width = self.simdino.head_out
        # summed compression, images; F^T F of each global view
        self._val_sums = torch.zeros(2, dtype=torch.float64)
        self._covariances = torch.zeros(GLOBAL_VIEWS, width, width, dtype=torch.float64)

    def validation_step(self, batch: CropBatch, _: int) -> None:
        """Add a batch of fixed crops to the compression and to the covariances."""
        self.images.broken.note(batch["broken"])
        student, teacher = self.views(batch)
        agreed, count = compression(student, teacher).cpu(), student.shape[1]
        self._val_sums += torch.stack([agreed * count, torch.tensor(count)]).double()
        features = expanded_features(student, teacher, expa_type=self.simdino.expa_type)
        features = features.cpu().double()
        self._covariances += features.mT @ features

    def on_validation_epoch_end(self) -> None:
        """Log the loss of all validation images taken as one batch, over all ranks."""
        for part in self._gather(list(self.images.broken.items())):
            self.images.broken.note(part)
        summed, count = torch.stack(self._gather(self._val_sums)).sum(dim=0).tolist()
        covariances = torch.stack(self._gather(self._covariances)).sum(dim=0)
        images, eps = round(count), self.simdino.eps
        agreed = summed / count
        spread = float(expansion_of_covariances(covariances, images=images, eps=eps))
        found = {
            "val/loss": -self.simdino.coefficient * agreed - spread,
            "val/compression": agreed,
            "val/expansion": spread,
            "val/largest_expansion": largest_expansion(images, self.simdino.head_out, eps=eps),
        }
        self.log_dict(found, sync_dist=True)  # the same everywhere already


def view_network(config: PretrainConfig, preprocess: Preprocess | None = None) -> ViewNetwork:
    """The student that a run begins with: a fresh encoder, and a head from the global generator."""
    settings = config.simdino
    backbone = build_encoder(config.model, vitmae=config.vitmae, seed=config.seed)
    if preprocess is not None:
        backbone.preprocess = preprocess
    if isinstance(backbone, CrateEncoder):
        patch = config.model.patch_hw
        rows, columns = (a // b for a, b in zip(settings.crops.local_hw, patch, strict=True))
        backbone.encoder.expect_grid((rows, columns))
    head = ProjectionHead(
        config.model.dim,
        hidden=settings.head_hidden,
        out=settings.head_out,
        layers=settings.head_layers,
    )
    return ViewNetwork(backbone, head)


def self_distillation(
    config: PretrainConfig, network: ViewNetwork, **settings: Any
) -> SelfDistillation:
    """The module that trains a network as a configuration says."""
    return SelfDistillation(
        network,
        simdino=config.simdino,
        accumulate=config.trainer.accumulate,
        optim=config.optim,
        seed=config.seed,
        **settings,
    )
