"""Token statistics: the authors' numbers, the definition in loops, and linear cost."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from model_cases import family_golden, gap, some, under
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crate_mae.models.mssa import Attention
from crate_mae.models.tssa import TSSA, CausalTSSA

GOLDEN, CONFIG = family_golden("tost")


def published(names: dict[str, Tensor], operator: Attention) -> Attention:
    """An operator with published tensors."""
    ours = {
        "qkv": "subspaces", "c_attn": "subspaces", "to_out.0": "output", "c_proj": "output",
        "temp": "temperature", "denom_bias": "offsets",
    }  # fmt: skip
    state = {}
    for key, value in names.items():
        part = next(p for p in ours if key == p or key.startswith(f"{p}."))
        state[key.replace(part, ours[part], 1)] = value
    operator.load_state_dict(state)
    return operator


def check_operator(
    operator: Attention, golden: dict[str, Tensor], grads: dict[str, Tensor]
) -> None:
    """Output and all gradients in float64, and the output in float32."""
    single = operator(golden["in.tokens"])
    assert gap(single, golden["f32.out"]) <= 1e-5
    operator.double()
    tokens = golden["in.tokens"].double().requires_grad_()
    out = operator(tokens)
    assert gap(out, golden["out"]) <= 1e-10
    torch.autograd.backward((out * golden["in.cotangent"]).sum())
    assert tokens.grad is not None
    assert gap(tokens.grad, grads.pop("in.tokens")) <= 1e-10
    found = {name: p.grad for name, p in operator.named_parameters() if p.grad is not None}
    assert len(found) == len(grads)
    for (name, gradient), expected in zip(sorted(found.items()), _sorted(grads), strict=True):
        assert gap(gradient, expected) <= 1e-10, name


def _sorted(grads: dict[str, Tensor]) -> list[Tensor]:
    """Published gradients in the order of our names."""
    order = {"denom_bias": "offsets", "c_proj": "output", "to_out.0": "output",
             "c_attn": "subspaces", "qkv": "subspaces", "temp": "temperature"}  # fmt: skip

    def ours(key: str) -> str:
        part = next(p for p in order if key == p or key.startswith(f"{p}."))
        return key.replace(part, order[part], 1)

    return [grads[key] for key in sorted(grads, key=ours)]


def test_the_operator_agrees_with_the_published_code() -> None:
    golden, sizes = under(GOLDEN, "op."), CONFIG["operator"]
    operator = TSSA(
        dim=sizes["dim"],
        num_heads=sizes["heads"],
        output_projection="free",
        bias=sizes["qkv_bias"],
    )
    published(under(golden, "param."), operator)
    check_operator(operator, golden, under(golden, "grad."))
    tokens = golden["in.tokens"].double()
    assert gap(operator.membership(tokens), golden["Pi"]) <= 1e-12
    w = operator.project(tokens).transpose(1, 2).flatten(2)
    assert gap(w, golden["w"]) <= 1e-12


def test_the_causal_operator_agrees_with_the_published_code() -> None:
    golden, sizes = under(GOLDEN, "causal."), CONFIG["causal"]
    operator = CausalTSSA(
        dim=sizes["dim"],
        num_heads=sizes["heads"],
        output_projection="free",
        bias=sizes["bias"],
        length=sizes["block_size"],
    )
    published(under(golden, "param."), operator)
    check_operator(operator, golden, under(golden, "grad."))
    with pytest.raises(ValueError, match="11 tokens are more than this operator's length of 10"):
        operator(torch.zeros(1, 11, sizes["dim"], dtype=torch.float64))


class PublishedVision(nn.Module):
    """ToST's vision model from embedded patches on: our operator, with the parts we do not have."""

    def __init__(self, state: dict[str, Tensor], sizes: dict[str, Any]) -> None:
        super().__init__()
        self.sizes = sizes
        self.attention = nn.ModuleList(
            published(
                under(state, f"blocks.{index}.attn."),
                TSSA(
                    dim=sizes["embed_dim"],
                    num_heads=sizes["num_heads"],
                    output_projection="free",
                    bias=True,
                ),
            )
            for index in range(sizes["depth"])
        ).double()
        own = {key: value for key, value in state.items() if not re_attention(key)}
        self.rest = {k: nn.Parameter(v.double()) for k, v in own.items()}

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the tokens after every block."""
        after = []
        for index, attention in enumerate(self.attention):
            name = f"blocks.{index}"
            tokens = tokens + self.rest[f"{name}.gamma1"] * attention(
                self._norm(tokens, f"{name}.norm1")
            )
            tokens = tokens + self.rest[f"{name}.gamma2"] * self._mlp(
                self._norm(tokens, f"{name}.norm2"), f"{name}.mlp"
            )
            after.append(tokens)
        tokens = torch.cat([self.rest["cls_token"].expand(len(tokens), -1, -1), tokens], dim=1)
        for index in range(self.sizes["cls_attn_layers"]):
            tokens = self._class_block(tokens, f"cls_attn_blocks.{index}")
        logits = self._linear(self._norm(tokens, "norm")[:, 0], "head")
        return logits, after

    def _class_block(self, tokens: Tensor, name: str) -> Tensor:
        y, heads = self._norm(tokens, f"{name}.norm1"), self.sizes["num_heads"]
        qkv = self._linear(y, f"{name}.attn.qkv")
        qkv = qkv.reshape(*qkv.shape[:2], 3, heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q[:, :, :1] * k).sum(-1) / math.sqrt(q.shape[-1])
        found = (weights.softmax(-1)[..., None] * v).sum(2).flatten(1)[:, None]
        joined = torch.cat([self._linear(found, f"{name}.attn.proj"), y[:, 1:]], dim=1)
        z = self._norm(tokens + self.rest[f"{name}.gamma1"] * joined, f"{name}.norm2")
        own = self.rest[f"{name}.gamma2"] * self._mlp(z[:, :1], f"{name}.mlp")
        return z + torch.cat([own, z[:, 1:]], dim=1)

    def _norm(self, tokens: Tensor, name: str) -> Tensor:
        weight, bias = self.rest[f"{name}.weight"], self.rest[f"{name}.bias"]
        return F.layer_norm(tokens, tokens.shape[-1:], weight, bias, 1e-6)

    def _linear(self, tokens: Tensor, name: str) -> Tensor:
        return F.linear(tokens, self.rest[f"{name}.weight"], self.rest[f"{name}.bias"])

    def _mlp(self, tokens: Tensor, name: str) -> Tensor:
        return self._linear(F.gelu(self._linear(tokens, f"{name}.fc1")), f"{name}.fc2")


def re_attention(key: str) -> bool:
    """Whether a published tensor is of a block's token statistics."""
    return key.startswith("blocks.") and ".attn." in key


def test_the_published_vision_model_around_the_operator() -> None:
    golden = under(GOLDEN, "model.")
    model = PublishedVision(under(golden, "param."), CONFIG["model"])
    tokens = golden["patches"] + golden["positions"].flatten(2).mT
    assert gap(tokens, golden["block.0.in"]) <= 1e-12
    logits, after = model(tokens)
    assert gap(logits, golden["out.logits"]) <= 1e-10
    for index, attention in enumerate(model.attention):
        assert isinstance(attention, TSSA)
        assert gap(after[index], golden[f"block.{index}.out"]) <= 1e-10
        x = model._norm(golden[f"block.{index}.in"], f"blocks.{index}.norm1")
        assert gap(attention(x), golden[f"block.{index}.tssa"]) <= 1e-10
        assert gap(attention.membership(x), golden[f"block.{index}.Pi"]) <= 1e-10
    loss = F.cross_entropy(logits, golden["in.labels"], label_smoothing=0.1)
    assert gap(loss, golden["out.loss"]) <= 1e-10
    torch.autograd.backward(loss)
    grads = under(golden, "grad.")
    for index, attention in enumerate(model.attention):
        of_block = under(grads, f"blocks.{index}.attn.")
        names = [name for name, _ in sorted(attention.named_parameters())]
        for name, expected in zip(names, _sorted(of_block), strict=True):
            gradient = attention.get_parameter(name).grad
            assert gradient is not None
            assert gap(gradient, expected) <= 1e-10, name
    for name, parameter in model.rest.items():
        assert parameter.grad is not None
        assert gap(parameter.grad, grads[name]) <= 1e-10, name


@given(
    heads=st.integers(2, 3),
    p=st.integers(1, 3),
    tokens=st.integers(1, 5),
    projection=st.sampled_from(["free", "free-no-bias", "tied"]),
    bias=st.booleans(),
)
@some
def test_it_is_its_definition(heads: int, p: int, tokens: int, projection: Any, bias: bool) -> None:
    torch.manual_seed(heads + 10 * p)
    dim = heads * p
    operator = TSSA(dim=dim, num_heads=heads, output_projection=projection, bias=bias).double()
    with torch.no_grad():
        operator.temperature.copy_(torch.rand(heads, 1) + 0.5)
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    for image, found in zip(x, operator(x), strict=True):
        assert gap(found, by_definition(operator, image)) <= 1e-12


def by_definition(operator: TSSA, x: Tensor) -> Tensor:
    """One image (N, d), entry by entry."""
    U, offset = operator.subspaces.weight.detach(), operator.subspaces.bias
    tokens, dim = x.shape
    heads, p = operator.num_heads, dim // operator.num_heads
    w = [
        [
            sum(float(U[k * p + j, i]) * float(x[n, i]) for i in range(dim))
            + (0.0 if offset is None else offset[k * p + j].item())
            for k in range(heads)
            for j in range(p)
        ]
        for n in range(tokens)
    ]
    norms = [math.sqrt(sum(row[column] ** 2 for row in w)) for column in range(dim)]
    shares = []
    for row in w:
        scores = [
            operator.temperature[k].item()
            * sum((row[k * p + j] / norms[k * p + j]) ** 2 for j in range(p))
            for k in range(heads)
        ]
        total = sum(map(math.exp, scores))
        shares.append([math.exp(score) / total for score in scores])
    moved = torch.zeros(tokens, dim, dtype=torch.float64)
    for k in range(heads):
        members = sum(share[k] for share in shares) + 1e-8
        for j in range(p):
            column = k * p + j
            m = sum(shares[n][k] / members * w[n][column] ** 2 for n in range(tokens))
            for n in range(tokens):
                moved[n, column] = -w[n][column] * shares[n][k] / (1 + m)
    if operator.tied:
        return moved @ U
    assert operator.output is not None
    return F.linear(moved, operator.output.weight, operator.output.bias).detach()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.values = max([self.values, *sizes])
        return made


@pytest.mark.parametrize("tokens", [64, 1024])
def test_no_tensor_grows_faster_than_the_tokens(tokens: int) -> None:
    operator = TSSA(dim=8, num_heads=2, output_projection="free", bias=False)
    x = torch.randn(1, tokens, 8, requires_grad=True)
    with Largest() as largest:
        torch.autograd.backward(operator(x).sum())
    assert largest.values <= tokens * 8 * 2


def test_memberships_sum_to_one_and_maps_are_refused() -> None:
    operator = TSSA(dim=12, num_heads=3, output_projection="free", bias=True)
    shares = operator.membership(torch.randn(2, 5, 12))
    assert shares.shape == (2, 3, 5)
    assert gap(shares.sum(dim=1), torch.ones(2, 5)) < 1e-6
    with pytest.raises(ValueError, match=r"no N x N attention maps.*membership"):
        operator.attention(torch.randn(2, 5, 12))
    with pytest.raises(ValueError, match="two heads or more"):
        TSSA(dim=12, num_heads=1, output_projection="free", bias=False)


@pytest.mark.parametrize("tokens", [torch.zeros(1, 4, 8), torch.ones(1, 4, 8)])
def test_tokens_without_spread_stay_finite(tokens: Tensor) -> None:
    operator = TSSA(dim=8, num_heads=2, output_projection="free", bias=False)
    tokens.requires_grad_()
    torch.autograd.backward(operator(tokens).sum())
    assert all(bool(p.grad.isfinite().all()) for p in operator.parameters() if p.grad is not None)
    assert tokens.grad is not None
    assert bool(tokens.grad.isfinite().all())


def test_half_precision_is_close_to_full() -> None:
    torch.manual_seed(0)
    operator = TSSA(dim=32, num_heads=4, output_projection="free", bias=True)
    x = torch.randn(2, 50, 32)
    exact = operator(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = operator(x)
    assert gap(rough, exact) < 0.02 * float(exact.detach().abs().max())
