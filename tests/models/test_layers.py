"""MSSA, ISTA and the layers made of them: equations, gradients, memory, and a remembered M."""

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from model_cases import (
    VARIANTS,
    decoder_layer,
    encoder_layer,
    gap,
    gradients,
    images_for,
    make,
    mask_for,
    some,
    tiny,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import ModelConfig
from crate_mae.models.initial_values import init_linear
from crate_mae.models.ista import ISTA
from crate_mae.models.mssa import MSSA, attend

ETA, LAMBDA = 0.3, 0.4


def ista_of(dim: int, *, seed: int = 0, wide: bool = True) -> ISTA:
    torch.manual_seed(seed)
    ista = ISTA(dim=dim, step_size=ETA, sparsity=LAMBDA)
    return ista.double() if wide else ista


def ista_by_definition(ista: ISTA, x: Tensor) -> Tensor:
    """ReLU( x + eta (x - x D^T) D - eta lambda ) for every token, from D as it is now."""
    D = ista.dictionary
    flat = x.reshape(-1, x.shape[-1])
    codes = []
    for token in flat:
        moved = token + ista.step_size * (D.T @ (token - D @ token))
        codes.append(torch.clamp(moved - ista.step_size * ista.sparsity, min=0))
    return torch.stack(codes).reshape(x.shape)


# --- half steps -------------------------------------------------------------------------------


def test_encoder_half_steps_compose_to_the_layer() -> None:
    torch.manual_seed(0)
    layer, z = encoder_layer(tiny()), torch.randn(2, 5, 12)
    assert torch.equal(layer(z), layer.sparsify(layer.compress(z)))
    assert torch.equal(layer.compress(z), z + layer.mssa(layer.norm1(z)))
    h = layer.compress(z)
    assert torch.equal(layer.sparsify(h), layer.ista(layer.norm2(h)))
    # The skip of ISTA starts at LN2(h), not at h.
    assert gap(layer.sparsify(h), layer.ista(h)) > 0.01


def test_decoder_half_steps_compose_to_the_layer() -> None:
    torch.manual_seed(0)
    layer = decoder_layer(tiny())
    z = torch.randn(2, 5, 12)
    assert torch.equal(layer(z), layer.decompress(layer.expand(z)))
    y = layer.expand(z)
    assert gap(y, layer.norm1(z) @ layer.dictionary.T) <= 1e-6
    assert torch.equal(layer.decompress(y), y - layer.mssa(layer.norm2(y)))


# --- ISTA -------------------------------------------------------------------------------------


@given(
    dim=st.sampled_from([1, 4, 9]),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 8),
    training=st.booleans(),
    frozen=st.booleans(),
    seed=st.integers(0, 10**6),
)
@some
def test_ista_equals_its_definition(
    dim: int, batch: int, tokens: int, training: bool, frozen: bool, seed: int
) -> None:
    ista = ista_of(dim, seed=seed).train(training).requires_grad_(not frozen)
    x = 2 * torch.randn(batch, tokens, dim, dtype=torch.float64)
    expected = ista_by_definition(ista, x)
    assert gap(ista(x), expected) <= 1e-10
    with torch.no_grad():
        assert gap(ista(x), expected) <= 1e-10


@pytest.mark.parametrize("tokens", [3, 8, 9, 40], ids=lambda n: f"{n} tokens")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_ista_gradients_equal_those_of_the_definition(tokens: int, training: bool) -> None:
    ista = ista_of(8).train(training)
    x = torch.randn(1, tokens, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, tokens, 8, dtype=torch.float64)
    found = torch.autograd.grad((ista(x) * weights).sum(), [x, ista.dictionary])
    expected = torch.autograd.grad(
        (ista_by_definition(ista, x) * weights).sum(), [x, ista.dictionary]
    )
    assert gap(found[0], expected[0]) <= 1e-10
    assert gap(found[1], expected[1]) <= 1e-10
    assert float(expected[1].abs().max()) > 0.1


@pytest.mark.parametrize(
    ("tokens", "folded"), [(1, False), (7, False), (8, False), (9, True), (100, True)]
)
def test_folded_form_is_used_above_as_many_tokens_as_dimensions(
    tokens: int, folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ista = ista_of(8).train()
    counted = count_maps(monkeypatch)
    ista(torch.randn(1, tokens, 8, dtype=torch.float64))
    assert len(counted) == int(folded)


def test_folded_map_is_its_definition() -> None:
    ista = ista_of(5)
    D = ista.dictionary.detach()
    expected = torch.empty(5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            product = sum(float(D[k, i]) * float(D[k, j]) for k in range(5))
            expected[i, j] = float(i == j) + ETA * (float(D[i, j]) - product)
    assert gap(ista.folded_map(), expected) <= 1e-12


def test_ista_is_the_proximal_gradient_step_of_a_non_negative_lasso() -> None:
    """x - eta * d/dx of 1/2 |t - D x|^2 at x = t, then the prox of eta*lambda*|x|_1 on x >= 0."""
    ista = ista_of(6)
    D = ista.dictionary.detach()
    target = 2 * torch.randn(6, dtype=torch.float64)

    def smooth(x: Tensor) -> float:
        return 0.5 * float(((target - D @ x) ** 2).sum())

    slope, delta = torch.empty(6, dtype=torch.float64), 1e-5
    for i in range(6):
        unit = torch.zeros(6, dtype=torch.float64)
        unit[i] = delta
        slope[i] = (smooth(target + unit) - smooth(target - unit)) / (2 * delta)
    point = target - ETA * slope

    # The prox has the closed form of a shifted ReLU; here it is found by trying many values.
    candidates = torch.linspace(0, 12, 120_001, dtype=torch.float64)
    expected = torch.stack(
        [
            candidates[(0.5 * (candidates - p) ** 2 + ETA * LAMBDA * candidates).argmin()]
            for p in point
        ]
    )
    found = ista(target[None, None])[0, 0]
    assert gap(found, expected) <= 1.1e-4
    assert bool((found == 0).any())
    assert bool((found > 0).any())


def test_ista_codes_are_non_negative_with_exact_zeros() -> None:
    ista = ista_of(8)
    codes = ista(torch.randn(2, 50, 8, dtype=torch.float64))
    assert bool((codes >= 0).all())
    assert 0.1 < float((codes == 0).double().mean()) < 0.99


# --- the remembered M -------------------------------------------------------------------------


def count_maps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one whenever M is built."""
    built: list[int] = []
    original = ISTA.folded_map

    def counted(self: ISTA) -> Tensor:
        built.append(1)
        return original(self)

    monkeypatch.setattr(ISTA, "folded_map", counted)
    return built


TOKENS = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def warmed() -> ISTA:
    """An ISTA that has remembered the M of its dictionary."""
    ista = ista_of(8).eval()
    with torch.no_grad():
        assert gap(ista(TOKENS), ista_by_definition(ista, TOKENS)) <= 1e-10
    assert ista._kept is not None
    return ista


def other_dictionary() -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(8, 8, generator=generator, dtype=torch.float64)


def assert_fresh(ista: ISTA) -> None:
    """The output follows from D and eta as they are now, twice, with and without gradients."""
    x = TOKENS.to(ista.dictionary.dtype)
    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-5
    for _ in range(2):
        with torch.no_grad():
            assert gap(ista(x), ista_by_definition(ista, x)) <= tolerance
        with torch.inference_mode():
            assert gap(ista(x), ista_by_definition(ista, x)) <= tolerance
        assert gap(ista(x), ista_by_definition(ista, x)) <= tolerance


def optimiser_step(ista: ISTA) -> None:
    ista.train()
    optimiser = torch.optim.SGD(ista.parameters(), lr=0.1)
    ista(TOKENS).sum().backward()
    optimiser.step()
    ista.eval()


def optimiser_step_in_eval_mode(ista: ISTA) -> None:
    optimiser = torch.optim.AdamW(ista.parameters(), lr=0.1)
    ista(TOKENS).sum().backward()
    optimiser.step()


def load(ista: ISTA) -> None:
    ista.load_state_dict({"dictionary": other_dictionary()})


def load_by_assignment(ista: ISTA) -> None:
    ista.load_state_dict({"dictionary": other_dictionary()}, assign=True)


def scale_data(ista: ISTA) -> None:
    ista.dictionary.data.mul_(1.5)


def replace_data(ista: ISTA) -> None:
    ista.dictionary.data = other_dictionary()


def replace_parameter(ista: ISTA) -> None:
    ista.dictionary = nn.Parameter(other_dictionary())


def add_in_place(ista: ISTA) -> None:
    with torch.no_grad():
        ista.dictionary.add_(0.1)


def copy_in_place(ista: ISTA) -> None:
    with torch.no_grad():
        ista.dictionary.copy_(other_dictionary())


def one_entry_in_place(ista: ISTA) -> None:
    with torch.no_grad():
        ista.dictionary[3, 4] += 1e-3


def through_numpy(ista: ISTA) -> None:
    ista.dictionary.detach().numpy()[2, 5] = 0.7


def through_inference_mode(ista: ISTA) -> None:
    with torch.inference_mode():
        ista.dictionary.mul_(0.5)


def narrow(ista: ISTA) -> None:
    ista.to(torch.float32)


def narrow_and_widen(ista: ISTA) -> None:
    ista.half().float()


def toggled(ista: ISTA) -> None:
    ista.train()
    with torch.no_grad():
        ista.dictionary.mul_(0.5)
        ista(TOKENS)
    ista.eval()


def another_step_size(ista: ISTA) -> None:
    ista.step_size = 0.05


def another_sparsity(ista: ISTA) -> None:
    ista.sparsity = 0.05


def not_a_number_and_back(ista: ISTA) -> None:
    kept = ista.dictionary.detach().clone()
    with torch.no_grad():
        ista.dictionary[0, 0] = math.nan
        assert bool(ista(TOKENS).isnan().any())
        ista.dictionary.copy_(2 * kept)


CHANGES: list[Callable[[ISTA], None]] = [
    optimiser_step,
    optimiser_step_in_eval_mode,
    load,
    load_by_assignment,
    scale_data,
    replace_data,
    replace_parameter,
    add_in_place,
    copy_in_place,
    one_entry_in_place,
    through_numpy,
    through_inference_mode,
    narrow,
    narrow_and_widen,
    toggled,
    another_step_size,
    another_sparsity,
    not_a_number_and_back,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_remembered_map_never_goes_stale(change: Callable[[ISTA], None]) -> None:
    ista = warmed()
    with torch.no_grad():
        before = ista(TOKENS)
    change(ista)
    assert_fresh(ista)
    with torch.no_grad():
        after = ista(TOKENS.to(ista.dictionary.dtype))
    assert gap(after, before) > 1e-8  # the change was one that shows


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        copy.copy,
        lambda ista: pickle.loads(pickle.dumps(ista)),
    ],
    ids=["deepcopy", "copy", "pickle"],
)
def test_copies_do_not_share_a_stale_map(duplicate: Callable[[ISTA], ISTA]) -> None:
    ista = warmed()
    twin = duplicate(ista)
    twin.dictionary = nn.Parameter(twin.dictionary.detach() * 2)
    assert_fresh(twin)
    assert_fresh(ista)
    with torch.no_grad():
        twin.dictionary.mul_(0.5)
        ista.dictionary.mul_(3)
    assert_fresh(twin)
    assert_fresh(ista)


def test_remembered_map_is_not_pickled() -> None:
    small, large = io.BytesIO(), io.BytesIO()
    torch.save(ista_of(8).eval(), small)
    torch.save(warmed(), large)
    assert len(large.getvalue()) == len(small.getvalue())
    assert list(warmed().state_dict()) == ["dictionary"]


def test_map_remembered_in_inference_mode_can_be_differentiated_through() -> None:
    ista = ista_of(8).eval().requires_grad_(False)
    with torch.inference_mode():
        ista(TOKENS)
    assert ista._kept is not None
    x = TOKENS.clone().requires_grad_()
    (found,) = torch.autograd.grad(ista(x).sum(), [x])
    (expected,) = torch.autograd.grad(ista_by_definition(ista, x).sum(), [x])
    assert gap(found, expected) <= 1e-10


def test_functional_call_sees_the_tensors_it_was_given() -> None:
    ista = warmed()
    for replacement in (other_dictionary(), nn.Parameter(other_dictionary())):
        with torch.no_grad():
            found = torch.func.functional_call(ista, {"dictionary": replacement}, (TOKENS,))
        truth = ista_of(8)
        truth.dictionary = nn.Parameter(replacement.detach())
        assert gap(found, ista_by_definition(truth, TOKENS)) <= 1e-10
        assert_fresh(ista)


def test_many_dictionaries_can_be_mapped_over_at_once() -> None:
    ista = warmed()
    dictionaries = torch.stack([other_dictionary(), 2 * other_dictionary()])

    def codes(dictionary: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(ista, {"dictionary": dictionary}, (TOKENS,))
        return found

    with torch.no_grad():
        together = torch.func.vmap(codes)(dictionaries)
        for index in range(2):
            assert gap(together[index], codes(dictionaries[index])) <= 1e-10
    assert_fresh(ista)


def test_gradient_reaches_the_dictionary_after_a_remembered_map() -> None:
    ista = warmed()
    (found,) = torch.autograd.grad(ista(TOKENS).sum(), [ista.dictionary])
    (expected,) = torch.autograd.grad(ista_by_definition(ista, TOKENS).sum(), [ista.dictionary])
    assert gap(found, expected) <= 1e-10


def test_map_is_built_once_for_an_unchanged_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    built = count_maps(monkeypatch)
    ista = ista_of(8).eval()
    with torch.no_grad():
        for _ in range(5):
            ista(TOKENS)
        assert len(built) == 1
        ista.dictionary.mul_(2)
        for _ in range(5):
            ista(TOKENS)
        assert len(built) == 2


def test_encoding_builds_one_map_per_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    built = count_maps(monkeypatch)
    config = tiny(depth=3)
    model, images = make(config).eval(), images_for(config)
    for _ in range(4):
        with torch.inference_mode():
            model.encode(images)
    assert len(built) == 3


def test_nothing_is_remembered_in_training_mode() -> None:
    ista = ista_of(8).train()
    with torch.no_grad():
        ista(TOKENS)
    assert ista._kept is None


def test_model_is_never_stale_through_its_own_life() -> None:
    """Encode, train, encode, load, encode: always what a model built afresh from D computes."""
    config = tiny()
    model, images = make(config), images_for(config)

    def expected() -> Tensor:
        fresh = CrateMAE(config).eval()
        fresh.load_state_dict(model.state_dict())
        with torch.no_grad():
            return fresh.encode(images)

    def encode() -> Tensor:
        with torch.no_grad():
            return model.eval().encode(images)

    start = encode()
    assert torch.equal(start, expected())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    model.train()(images, mask_for(config)).loss.backward()
    optimiser.step()
    trained = encode()
    assert torch.equal(trained, expected())
    model.load_state_dict(make(config, seed=5).state_dict())
    loaded = encode()
    assert torch.equal(loaded, expected())
    assert gap(start, trained) > 1e-3
    assert gap(trained, loaded) > 1e-3


# --- MSSA -------------------------------------------------------------------------------------


@given(
    heads=st.sampled_from([1, 2, 3, 6]),
    batch=st.integers(1, 2),
    tokens=st.integers(1, 7),
    tied=st.booleans(),
    seed=st.integers(0, 10**6),
)
@some
def test_mssa_equals_its_definition(
    heads: int, batch: int, tokens: int, tied: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    mssa = MSSA(dim=6, num_heads=heads, output_projection="tied" if tied else "free").double()
    x = torch.randn(batch, tokens, 6, dtype=torch.float64)
    U, p = mssa.subspaces.weight, 6 // heads
    expected = torch.zeros_like(x)
    for b in range(batch):
        for n in range(tokens):
            joined = torch.zeros(6, dtype=torch.float64)
            for k in range(heads):
                w = [U[k * p : (k + 1) * p] @ x[b, m] for m in range(tokens)]
                scores = torch.stack([torch.exp(w[n] @ w[m] / math.sqrt(p)) for m in range(tokens)])
                for m in range(tokens):
                    joined[k * p : (k + 1) * p] += (scores[m] / scores.sum() * w[m]).detach()
            if tied:
                # sum_k U_k (U_k^T x): every head is mapped back by its own subspace
                joined = torch.stack([(U[:, j] * joined).sum() for j in range(6)])
            elif heads > 1:
                assert mssa.output is not None
                joined = mssa.output.weight @ joined + mssa.output.bias
            expected[b, n] = joined.detach()
    assert gap(mssa(x), expected) <= 1e-10


@given(heads=st.sampled_from([1, 2, 4]), tokens=st.integers(1, 20), seed=st.integers(0, 10**6))
@some
def test_fused_attention_equals_the_explicit_weights(heads: int, tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    mssa = MSSA(dim=8, num_heads=heads, output_projection="free")
    if mssa.output is not None:
        nn.init.normal_(mssa.output.bias)
    x = torch.randn(2, tokens, 8)
    explicit = (mssa.attention(x) @ mssa.project(x)).transpose(1, 2).flatten(2)
    if mssa.output is not None:
        explicit = mssa.output(explicit)
    assert gap(mssa(x), explicit) <= 1e-5


def test_single_head_has_no_output_projection() -> None:
    assert MSSA(dim=8, num_heads=1, output_projection="free").output is None
    assert MSSA(dim=8, num_heads=2, output_projection="tied").output is None
    assert MSSA(dim=8, num_heads=2, output_projection="free").output is not None


class LargestSquare(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every tensor any operation returns that has two dimensions of at least `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens = tokens
        self.operations = 0
        self.squares: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                wide = [size for size in value.shape if size >= self.tokens]
                if len(wide) >= 2 or value.numel() >= self.tokens**2:
                    self.squares.append(f"{func} {tuple(value.shape)}")
        return result


@pytest.mark.parametrize("name", ["free", "tied", "single head", "decoder"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_no_token_by_token_tensor_is_ever_made(name: str, training: bool) -> None:
    changed: dict[str, dict[str, Any]] = {
        "free": {},
        "tied": {"output_projection": "tied"},
        "single head": {"num_heads": 1, "decoder_num_heads": 1},
        "decoder": {"mask_tokens": "decoder"},
    }
    config = tiny(image_size=(40, 40), patch_size=2, dim=8, num_heads=2, channels=1, depth=1)
    config = ModelConfig(**{**config.to_dict(), "decoder_depth": 1, **changed[name]})
    model, images = make(config).train(training), images_for(config, batch=1)
    mask = mask_for(config, batch=1, removed=100)
    with LargestSquare(300) as seen:
        model(images, mask).loss.backward()
        model.encode(images)
        with torch.no_grad():
            model.encode(images)
    assert seen.operations > 100
    assert seen.squares == []
    assert all(gradient is not None for gradient in gradients(model).values())
    with LargestSquare(300) as control:  # the recorder does see such tensors
        model.attention(images)
    assert control.squares


# --- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    config = VARIANTS[name]
    model = make(config)
    model(images_for(config), mask_for(config)).loss.backward()
    for key, gradient in gradients(model).items():
        assert gradient is not None, key
        assert bool(gradient.isfinite().all()), key
        assert float(gradient.abs().max()) > 0, key


def test_initial_values() -> None:
    torch.manual_seed(0)
    config = tiny(dim=64, num_heads=4, decoder_num_heads=4, channels=5, patch_size=(4, 6))
    model = CrateMAE(config)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.endswith(("class_token", "mask_token")):
            continue
        if "norm" in name:
            assert bool((values == (1 if name.endswith("weight") else 0)).all()), name
        elif name.endswith("bias"):
            assert bool((values == 0).all()), name
        else:
            if name.endswith(("dictionary", "synthesis.weight")):
                bound = math.sqrt(2) * math.sqrt(3 / values.shape[1])  # Kaiming, gain sqrt 2
            else:
                fan_in, fan_out = values[0].numel(), values.shape[0]
                bound = math.sqrt(6 / (fan_in + fan_out))  # Xavier, on the flattened weight
            assert 0.97 * bound < float(values.abs().max()) <= bound * (1 + 1e-6), name
            # Uniform on (-bound, bound), not merely bounded.
            assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
            assert abs(float(values.mean())) < 0.05 * bound, name


def test_initial_tokens_are_normal_with_std_of_two_percent() -> None:
    torch.manual_seed(0)
    model = CrateMAE(tiny(dim=3000, num_heads=1, decoder_num_heads=1, depth=1, decoder_depth=1))
    for token in (model.encoder.class_token, model.mask_token):
        values = token.detach().flatten()
        assert float(values.std()) == pytest.approx(0.02, rel=0.05)
        assert abs(float(values.mean())) < 0.002
        assert 0.65 < float((values.abs() < 0.02).double().mean()) < 0.72
        assert float(values.abs().max()) > 0.05


def test_init_linear_accepts_a_layer_without_bias() -> None:
    linear = nn.Linear(3, 5, bias=False)
    nn.init.constant_(linear.weight, 7.0)
    init_linear(linear)
    assert float(linear.weight.detach().abs().max()) <= math.sqrt(6 / 8)


def test_the_folded_maps_own_gradient_is_the_true_one() -> None:
    torch.manual_seed(0)
    ista = ISTA(dim=5, step_size=0.3, sparsity=0.1).double()
    D = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)

    def folded(D: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(_MapOf(ista), {"ista.dictionary": D}, ())
        return found

    assert torch.autograd.gradcheck(folded, (D,))
    assert torch.autograd.gradgradcheck(folded, (D,))
    tangent = torch.randn_like(D)
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
        dual = forward_ad.make_dual(D, tangent)  # type: ignore[no-untyped-call]
        change = forward_ad.unpack_dual(folded(dual)).tangent  # type: ignore[no-untyped-call]
    assert change is not None
    expected = 0.3 * (tangent - tangent.mT @ D - D.mT @ tangent)
    torch.testing.assert_close(change, expected, rtol=1e-12, atol=1e-12)
    (ours,) = torch.autograd.grad(folded(D).square().sum(), D)
    plain = torch.eye(5, dtype=torch.float64) + 0.3 * (D - D.mT @ D)
    (theirs,) = torch.autograd.grad(plain.square().sum(), D)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class _MapOf(torch.nn.Module):
    def __init__(self, ista: ISTA) -> None:
        super().__init__()
        self.ista = ista

    def forward(self) -> Tensor:
        folded: Tensor = self.ista.folded_map()
        return folded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_attention_is_computed_in_float32_on_a_cpu(
    dtype: torch.dtype, autocast: bool
) -> None:
    torch.manual_seed(0)
    w = (3 * torch.randn(2, 3, 7, 4)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = attend(w)
    assert found.dtype == dtype
    wide = w.detach().float().requires_grad_()
    expected = (wide @ wide.mT / 2).softmax(dim=-1) @ wide
    # Rounded once, at the end: half a unit in the last place, and no more.
    assert (found.float() - expected).abs().max() <= torch.finfo(dtype).eps / 2 * 8
    weight = torch.randn_like(expected).to(dtype)
    torch.autograd.backward(found, weight)
    torch.autograd.backward(expected, weight.float())
    assert w.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(w.grad.float(), wide.grad, rtol=torch.finfo(dtype).eps, atol=1e-2)


# --- skip and step size -----------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["mssa", "tssa", "exact"])
@pytest.mark.parametrize("skip", ["tokens", "normalised"])
@pytest.mark.parametrize("step", [None, 0.3])
def test_skip_and_step_of_both_sides(attention: Any, skip: Any, step: float | None) -> None:
    projection = "tied" if attention == "exact" else "free"
    config = tiny(
        attention=attention,
        output_projection=projection,
        attention_skip=skip,
        compression_step=step,
    )
    torch.manual_seed(0)
    encoder, decoder = encoder_layer(config).double(), decoder_layer(config).double()
    z = torch.randn(2, 5, 12, dtype=torch.float64)
    for layer, norm, sign in ((encoder, encoder.norm1, 1), (decoder, decoder.norm2, -1)):
        x = norm(z)
        output = layer.mssa(x)
        start = x if skip == "normalised" else z
        if step is None:
            expected = start + sign * output
        elif attention == "mssa":
            expected = start + sign * step * (output - x)
        else:
            expected = start + sign * step * output
        found = encoder.compress(z) if sign > 0 else decoder.decompress(z)
        assert gap(found, expected) < 1e-12
    if skip == "normalised" and step is not None and attention == "mssa":
        x = encoder.norm1(z)
        assert gap(encoder.compress(z), (1 - step) * x + step * encoder.mssa(x)) < 1e-12
        y = decoder.norm2(z)
        assert gap(decoder.decompress(z), (1 + step) * y - step * decoder.mssa(y)) < 1e-12


def test_stochastic_depth_leaves_out_what_attention_adds() -> None:
    for skip in ("tokens", "normalised"):
        layer = encoder_layer(tiny(attention_skip=skip, compression_step=0.5))
        z = torch.randn(2, 4, 12)
        start = z if skip == "tokens" else layer.norm1(z)
        kept = layer.compress(z, torch.tensor([0.0, 1.0]))
        assert gap(kept[0], start[0]) == 0
        assert gap(kept[1], layer.compress(z)[1]) < 1e-6


def test_without_a_sparse_step_tokens_pass_through() -> None:
    config = tiny(sparse_step="none")
    encoder, decoder = encoder_layer(config), decoder_layer(config)
    z = torch.randn(2, 4, 12)
    assert encoder.sparsify(z) is z
    assert decoder.expand(z) is z
    assert gap(decoder(z), z - decoder.mssa(decoder.norm2(z))) == 0
    assert encoder.sparse_step is decoder.sparse_step is None
    assert {n for n, _ in encoder.named_children()} >= {"norm1", "mssa"}
    assert not [n for n, _ in encoder.named_parameters() if n.startswith(("norm2", "ista"))]
    with pytest.raises(ValueError, match="no sparse step, so there are no codes"):
        encoder.codes(z)
