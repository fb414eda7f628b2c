"""The work that is timed: a training step, or the features of a batch."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from crate_mae.models.config import ModelConfig
from crate_mae.models.masks import draw_mask
from crate_mae.training.optim import can_fuse
from speed.subjects import COMPILED, Runner, Work, subject_of

Precision = Literal["32-true", "bf16-mixed"]
Step = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that fixes one kind of work, but for the subject that does it."""

    config: ModelConfig
    work: Work
    batch: int
    precision: Precision = "32-true"
    ratio: float = 0.75
    """Share of the patches that is removed in training."""
    device: str = "cpu"
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of a batch: class token and all patches of every image."""
        return self.batch * (1 + self.config.num_patches)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Random images (B, C, H, W) in [0, 1] and masks (B, L), the same for every subject."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.config.channels, *self.config.image_hw)
        images = torch.rand(shape, generator=generator)
        mask = draw_mask("random", self.config.grid, self.ratio, generator, batch=self.batch)
        return images.to(self.device), mask.to(self.device)

    def module(self, subject: str) -> nn.Module:
        """The subject's module on the job's device; subjects of one model get the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return subject_of(subject).build(self.config, self.ratio).to(self.device)


def make_step(subject: str, job: Job) -> Step:
    """The call to be timed: it does a subject's work once and returns the loss or the features.

    A training step is forward, backward, AdamW's update and the gradients set to None: with them
    gone, what is held between two steps is weights and optimiser state alone. NAME+compile goes
    through torch.compile, which compiles at the first call.
    """
    module, (images, mask) = job.module(subject), job.inputs()
    compiled = subject.endswith(COMPILED)
    if job.work == "encode":
        module.eval()
        encode = cast("Runner", module).encode
        return _encoding(torch.compile(encode) if compiled else encode, images, job)
    module.train()
    if compiled:
        module.compile()
    return training_step(module, images, mask, job)


def training_step(module: nn.Module, images: Tensor, mask: Tensor, job: Job) -> Step:
    """The call that trains a module (a `Runner`) once on these inputs and returns the loss.

    Forward, backward, AdamW's update and the gradients set to None, in the precision of the job.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    fused = can_fuse(torch.device(job.device).type, job.precision)
    optimizer = AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=fused)

    def step() -> Tensor:
        with _precision(job):
            loss: Tensor = module(images, mask)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _encoding(encode: Callable[[Tensor], Tensor], images: Tensor, job: Job) -> Step:
    def step() -> Tensor:
        with torch.no_grad(), _precision(job):
            return encode(images)

    return step


@contextlib.contextmanager
def _precision(job: Job) -> Iterator[None]:
    kind = torch.device(job.device).type
    with torch.autocast(kind, torch.bfloat16, enabled=job.precision == "bf16-mixed"):
        yield


def waiter(device: str) -> Callable[[], Any]:
    """A call that returns when the device has done all that it was given."""
    kind = torch.device(device).type
    if kind == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if kind == "mps":
        return torch.mps.synchronize
    return lambda: None
