"""Initial values: those of CRATE-MAE, and those of the other families where a model is of them.

Every operator draws CRATE-MAE's when it is made; a configuration of another family has them drawn
anew. Which family has which is written in docs/family.md, with its source.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from crate_mae.models.config import InitialValuesOf


@dataclass(frozen=True, kw_only=True)
class InitialValues:
    """How one family draws its fresh weights; each sets what it is given, in place."""

    linear: Callable[[nn.Linear], None]
    """U, W and the prediction."""
    patches: Callable[[nn.Linear | nn.Conv2d], None]
    """The linear map, or the filters, that make tokens of patches."""
    class_token: float
    """Standard deviation of the class token; the mask token, which CRATE-MAE alone has, keeps its
    own."""
    positions: float
    """Standard deviation of learned positions."""
    head: Callable[[nn.Linear], None]
    """A classifier's map from features to scores."""


MASK_TOKEN = 0.02
"""Standard deviation of the mask token."""


def init_linear(linear: nn.Linear) -> None:
    """Set Xavier uniform weights and a zero bias, the published initial values."""
    nn.init.xavier_uniform_(linear.weight)
    _zero(linear.bias)


def _xavier_patches(filters: nn.Linear | nn.Conv2d) -> None:
    nn.init.xavier_uniform_(filters.weight.view(len(filters.weight), -1))
    _zero(filters.bias)


def _kaiming_patches(filters: nn.Linear | nn.Conv2d) -> None:
    nn.init.kaiming_uniform_(filters.weight.view(len(filters.weight), -1))
    _zero(filters.bias)


def _small_head(linear: nn.Linear) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.01)
    _zero(linear.bias)


def _as_torch(part: nn.Linear | nn.Conv2d) -> None:
    part.reset_parameters()


def _normal(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=0.02)
    _zero(linear.bias)


def _truncated(linear: nn.Linear) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    _zero(linear.bias)


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)


INITIAL_VALUES: dict[InitialValuesOf, InitialValues] = {
    "crate-mae": InitialValues(
        linear=init_linear,
        patches=_xavier_patches,
        class_token=0.02,
        positions=0.02,
        head=_small_head,
    ),
    "crate": InitialValues(
        linear=_as_torch, patches=_as_torch, class_token=1.0, positions=1.0, head=_as_torch
    ),
    "crate-alpha": InitialValues(
        linear=_normal,
        patches=_kaiming_patches,
        class_token=1e-6,
        positions=0.02,
        head=_normal,
    ),
    "tost": InitialValues(
        linear=_truncated,
        patches=_as_torch,
        class_token=0.02,
        positions=0.02,
        head=_truncated,
    ),
}
"""By the name that `ModelConfig.initial_values` has."""
