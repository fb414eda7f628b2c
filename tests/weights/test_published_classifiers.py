"""Published classifiers: the authors' numbers, every wrapping, and files that are refused."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from model_cases import FAMILY, family_golden, gap, images_for, tiny, under
from torch import Tensor

from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import IMAGENET_MEAN, PRESETS, ModelConfig
from crate_mae.weights.published_classifiers import (
    ClassifierFacts,
    from_published,
    layout_of_classifier,
    published_names,
    to_published,
)
from crate_mae.weights.tensors import IncompleteWeightsError

FACTS = ClassifierFacts(num_heads=4)
FAMILIES = ["crate", "crate_alpha"]


def state_of(name: str) -> dict[str, Tensor]:
    """A fresh published state."""
    golden, _ = family_golden(name)
    return {key: value.clone() for key, value in under(golden, "param.").items()}


def layout_named(name: str) -> Any:
    return name.replace("_", "-")


@pytest.mark.parametrize("name", FAMILIES)
def test_it_agrees_with_the_published_code(name: str) -> None:
    golden, config = family_golden(name)
    model = from_published(state_of(name), FACTS)
    assert model.config.depth == config["depth"]
    assert gap(model(golden["in.image"]), golden["f32.logits"]) <= 1e-5
    model.double()
    images = golden["in.image"].double().requires_grad_()
    patches = model.encoder.patch_tokens(images)
    assert gap(patches, golden["embed.patches"]) <= 1e-10
    assert gap(model.encoder.embed(images), golden["embed.tokens"]) <= 1e-10
    for step in model.half_steps(images):
        place = f"layer.{step.index}"
        if step.attends:
            assert gap(step.attention(), golden[f"{place}.attention"]) <= 1e-10
            x = step.mssa_norm(step.before)
            assert gap(step.mssa(x), golden[f"{place}.mssa"]) <= 1e-10
            assert gap(step.after, golden[f"{place}.h"]) <= 1e-10
        elif name == "crate":
            assert gap(step.after, golden[f"{place}.out"]) <= 1e-10
        else:
            codes = step.layer.codes(step.before)  # type: ignore[operator]
            assert gap(codes, golden[f"{place}.code2"]) <= 1e-10
            assert gap(step.after - step.before, golden[f"{place}.odl"]) <= 1e-10
    scores = model(images)
    assert gap(scores, golden["out.logits"]) <= 1e-10
    if name == "crate":
        loss = F.cross_entropy(scores, golden["in.labels"], label_smoothing=0.1)
        expected = golden["out.loss_label_smoothing_0.1"]
    else:
        loss = F.cross_entropy(scores, golden["in.soft_targets"].double())
        expected = golden["out.loss_soft_cross_entropy"]
    assert gap(loss, expected) <= 1e-10
    torch.autograd.backward(loss)
    assert images.grad is not None
    assert gap(images.grad, golden["grad.in.image"]) <= 1e-10
    names = published_names(model.config, layout_named(name))
    for own, parameter in model.named_parameters():
        assert parameter.grad is not None
        published = golden[f"grad.{names[own]}"].view_as(parameter)
        assert gap(parameter.grad, published) <= 1e-10, own


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(name: str) -> None:
    state = state_of(name)
    assert layout_of_classifier(state) == layout_named(name)
    back = to_published(from_published(state, FACTS))
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": (6, 20), "patch_size": (3, 5), "channels": 2, "num_heads": 6},
        {"num_heads": 1, "depth": 1},
        {"image_size": (8, 8), "dim": 30, "num_heads": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["crate", "crate-alpha"])
def test_any_size_goes_there_and_back(family: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    heads = {"decoder_num_heads": changes.get("num_heads", 3), "decoder_depth": 2}
    config = replace(FAMILY[family], **{**heads, **changes})
    if family == "crate-alpha":
        config = replace(config, overcomplete=2)
    model = CrateClassifier(config, num_classes=5, pool="cls").eval()
    facts = ClassifierFacts(
        num_heads=config.num_heads,
        image_size=config.image_hw,
        patch_size=config.patch_hw,
        channels=config.channels,
    )
    again = from_published(to_published(model), facts, eps=config.final_norm_eps)
    images = images_for(config)
    assert torch.equal(again(images), model(images))


def by_definition(state: dict[str, Tensor], image: Tensor, facts: ClassifierFacts) -> Tensor:
    """Scores (classes) of one image, a token and a head at a time, by the published names."""
    heads, eta, bound = facts.num_heads or 1, facts.step_size, facts.step_size * facts.sparsity
    ours = "conv1.weight" not in state
    eps = 1e-5 if ours else 1e-6

    def normed(token: Tensor, name: str, eps: float) -> Tensor:
        centred = token - token.sum() / len(token)
        scale = torch.sqrt((centred**2).sum() / len(token) + eps)
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def embedded(patch: Tensor) -> Tensor:
        if not ours:
            filters = state["conv1.weight"]
            return torch.stack([(f * patch).sum() for f in filters]) + state["conv1.bias"]
        name, (channels, height, width) = "to_patch_embedding", patch.shape
        values = [
            patch[c, y, x] for y in range(height) for x in range(width) for c in range(channels)
        ]
        token = normed(torch.stack(values), f"{name}.1", 1e-5)
        token = state[f"{name}.2.weight"] @ token + state[f"{name}.2.bias"]
        return normed(token, f"{name}.3", 1e-5)

    def attended(tokens: list[Tensor], name: str) -> list[Tensor]:
        coordinates = [state[f"{name}.qkv.weight"] @ token for token in tokens]
        p, found = len(coordinates[0]) // heads, []
        for query in coordinates:
            parts = []
            for head in range(heads):
                own = slice(head * p, (head + 1) * p)
                weights = [torch.exp(query[own] @ c[own] / math.sqrt(p)) for c in coordinates]
                mixed = [w * c[own] for w, c in zip(weights, coordinates, strict=True)]
                parts.append(torch.stack(mixed).sum(0) / torch.stack(weights).sum())
            out = torch.cat(parts)
            if f"{name}.to_out.0.weight" in state:
                out = state[f"{name}.to_out.0.weight"] @ out
            if f"{name}.to_out.0.bias" in state:
                out = out + state[f"{name}.to_out.0.bias"]
            found.append(out)
        return found

    def sparse(h: Tensor, name: str) -> Tensor:
        y = normed(h, f"{name}.norm", eps)
        if ours:
            D = state[f"{name}.fn.weight"]
            return torch.clamp(y + eta * D.mT @ (y - D @ y) - bound, min=0)
        D = state[f"{name}.fn.D"]
        first = torch.clamp(eta * D.mT @ y - bound, min=0)
        second = torch.clamp(first - eta * D.mT @ (D @ first - y) - bound, min=0)
        return h + state[f"{name}.fn.D1"] @ second

    height, width = cast("tuple[int, int]", facts.patch_size)
    patches = [
        image[:, y : y + height, x : x + width]
        for y in range(0, image.shape[1], height)
        for x in range(0, image.shape[2], width)
    ]
    tokens = [state["cls_token"][0, 0], *map(embedded, patches)]
    tokens = [t + place for t, place in zip(tokens, state["pos_embedding"][0], strict=True)]
    depth = len([key for key in state if key.endswith("fn.qkv.weight")])
    for index in range(depth):
        name = f"transformer.layers.{index}"
        x = [normed(token, f"{name}.0.norm", eps) for token in tokens]
        moves = attended(x, f"{name}.0.fn")
        tokens = [sparse(t + move, f"{name}.1") for t, move in zip(tokens, moves, strict=True)]
    pooled = tokens[0] if facts.pool == "cls" else torch.stack(tokens).sum(0) / len(tokens)
    features = normed(pooled, "mlp_head.0", 1e-5)
    return state["mlp_head.1.weight"] @ features + state["mlp_head.1.bias"]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"dim": 5, "num_heads": 5, "image_size": (4, 9), "patch_size": (2, 3), "channels": 1}, {}),
        ({"dim": 7, "num_heads": 1, "image_size": (5, 3), "patch_size": (5, 3), "channels": 2}, {}),
        ({"dim": 9, "num_heads": 3, "depth": 1, "channels": 4}, {"sparsity": 0.0}),
        ({"dim": 6, "num_heads": 2, "depth": 3}, {"step_size": 0.6, "sparsity": 0.3}),
        ({"dim": 6, "num_heads": 2}, {"pool": "mean-all", "step_size": 0.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("atoms", [0, 1, 2, 8])
def test_other_sizes_are_their_definition(
    atoms: int, changes: dict[str, Any], facts: dict[str, Any]
) -> None:
    """CRATE, and CRATE-alpha with so many atoms a dimension: scores and every gradient."""
    torch.manual_seed(0)
    if atoms:
        facts = {key: value for key, value in facts.items() if key != "pool"}
    family: dict[str, Any] = {"decoder_num_heads": 1, "sparsity": 0.1, "step_size": 0.1}
    family |= {"overcomplete": atoms, "final_norm_eps": 1e-5} if atoms else {}
    config = replace(FAMILY["crate-alpha" if atoms else "crate"], **{**family, **changes})
    state = to_published(CrateClassifier(config, num_classes=3, pool="cls"))
    state = {key: value + 0.2 * torch.randn_like(value) for key, value in state.items()}
    known = ClassifierFacts(
        num_heads=config.num_heads,
        image_size=config.image_hw,
        patch_size=config.patch_hw,
        channels=config.channels,
        **facts,
    )
    model = from_published(state, known).double()
    images = images_for(config).double().requires_grad_()
    found = model(images)
    truth = {key: value.double().requires_grad_() for key, value in state.items()}
    expected = torch.stack([by_definition(truth, image, known) for image in images])
    assert gap(found, expected) <= 1e-10
    towards = torch.randn_like(found)
    names = published_names(config, "crate-alpha" if atoms else "crate")
    own = {names[name]: parameter for name, parameter in model.named_parameters()}
    slopes = torch.autograd.grad((found * towards).sum(), [images, *own.values()])
    wanted = [images, *(truth[name] for name in own)]
    true = torch.autograd.grad((expected * towards).sum(), wanted, allow_unused=True)
    for name, slope, exact in zip(["images", *own], slopes, true, strict=True):
        exact = torch.zeros_like(slope) if exact is None else exact.view_as(slope)
        assert gap(slope, exact) <= 1e-10 * max(1.0, float(exact.abs().max())), name


def test_the_mean_over_all_tokens_is_the_other_pool() -> None:
    model = from_published(state_of("crate"), replace(FACTS, pool="mean-all"))
    images = family_golden("crate")[0]["in.image"]
    tokens = model.layer_tokens(images, [3])[3]
    expected = model.head(model.encoder.norm(tokens.mean(dim=1)))
    assert gap(model(images), expected) < 1e-6
    assert to_published(model).keys() == state_of("crate").keys()


def test_the_demos_two_maps_become_one() -> None:
    state = state_of("crate")
    plain = from_published(state, FACTS)
    torch.manual_seed(0)
    own = state["mlp_head.1.weight"]
    state["mlp_head.1.weight"] = torch.randn(24, 24)
    state["mlp_head.1.bias"] = torch.randn(24)
    state["head.weight"], state["head.bias"] = torch.randn(own.shape), torch.randn(len(own))
    model = from_published(state, FACTS).double()
    images = family_golden("crate")[0]["in.image"].double()
    pooled = plain.double().encode(images)[:, 0]
    inner = F.linear(pooled, state["mlp_head.1.weight"].double(), state["mlp_head.1.bias"].double())
    expected = F.linear(inner, state["head.weight"].double(), state["head.bias"].double())
    assert gap(model(images), expected) < 1e-5
    state["head.weight"] = torch.randn(7, 23)
    with pytest.raises(ValueError, match=r"head.weight \(7, 23\) does not follow"):
        from_published(state, FACTS)


def test_a_bias_of_the_demo_that_fits_nowhere_is_named() -> None:
    state = state_of("crate")
    state["head.weight"] = torch.zeros(5, 7)
    with pytest.raises(ValueError, match=r"head.bias is of shape \(4,\), not \(5,\)"):
        from_published(state | {"head.bias": torch.zeros(4)}, FACTS)
    state["mlp_head.1.bias"] = torch.zeros(6)
    with pytest.raises(ValueError, match=r"mlp_head.1.bias is of shape \(6,\), not \(7,\)"):
        from_published(state, FACTS)


def test_preprocessing_is_imagenets() -> None:
    assert from_published(state_of("crate"), FACTS).preprocess.mean == IMAGENET_MEAN


# --- what is told by itself -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "classes", "heads"),
    [
        ("crate-tiny", 1000, 6),
        ("crate-small", 10, 12),
        ("crate-alpha-tiny", 1000, 3),
        ("crate-alpha-large", 19_167, 16),
    ],
)
def test_published_widths_have_their_heads(preset: str, classes: int, heads: int) -> None:
    assert told(replace(PRESETS[preset], depth=1), classes).num_heads == heads


def test_the_demo_has_six_heads_of_128() -> None:
    config = replace(PRESETS["crate-base"], patch_size=8, depth=1)
    assert told(config, 21_842).num_heads == 6
    assert told(config, 1000).num_heads == 12


def told(config: ModelConfig, classes: int) -> ModelConfig:
    """What a file of this size tells, without memory for its tensors."""
    from crate_mae.weights.published_classifiers import _sizes

    with torch.device("meta"):
        model = CrateClassifier(config, num_classes=classes, pool="cls")
        layout: Any = "crate" if config.initial_values == "crate" else "crate-alpha"
        names = published_names(config, layout)
        state = {names[key]: value for key, value in model.state_dict().items()}
        state["pos_embedding"] = state["pos_embedding"][None]
    found = _sizes(state, layout, ClassifierFacts(), 1e-6)
    assert (found.image_hw, found.patch_hw) == (config.image_hw, config.patch_hw)
    assert (found.dim, found.depth, found.channels) == (config.dim, 1, 3)
    assert found.overcomplete == config.overcomplete
    return found


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_no_heads_are_guessed(name: str) -> None:
    with pytest.raises(ValueError, match=r"of width 24 was published.*give num_heads"):
        from_published(state_of(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_missing_tensor_is_named(name: str) -> None:
    for key in state_of(name):
        state = state_of(name)
        del state[key]
        with pytest.raises(ValueError, match=key.split(".")[0]):
            from_published(state, FACTS)


def doubled(value: Tensor) -> Tensor:
    """Twice as long along every axis."""
    return value.repeat(*[2] * value.ndim)


def with_one_axis_more(value: Tensor) -> Tensor:
    """The same values under another axis."""
    return value[None]


@pytest.mark.parametrize("reshape", [doubled, with_one_axis_more])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_reshaped_tensor_is_named(name: str, reshape: Callable[[Tensor], Tensor]) -> None:
    for key in state_of(name):
        state = state_of(name)
        state[key] = reshape(state[key])
        with pytest.raises(ValueError, match=rf"{re.escape(key)}\b"):
            from_published(state, FACTS)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "key", ["extra", "transformer.layers.9.0.fn.qkv.weight", "head.bias", "encoder.norm.weight"]
)
def test_unexpected_tensors_are_named(name: str, key: str) -> None:
    state = state_of(name) | {key: torch.zeros(2)}
    with pytest.raises(ValueError, match=r"unexpected|numbered"):
        from_published(state, FACTS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    state = state_of("crate")
    state["transformer.layers.1.1.fn.weight"][0, 0] = value
    with pytest.raises(ValueError, match=r"not finite, in transformer.layers.1.1.fn.weight"):
        from_published(state, FACTS)


def test_whole_numbers_are_refused() -> None:
    state = state_of("crate")
    state["cls_token"] = state["cls_token"].to(torch.int64)
    with pytest.raises(ValueError, match=r"no floating-point numbers: .*cls_token torch\.int64"):
        from_published(state, FACTS)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (ClassifierFacts(num_heads=5), "num_heads 5 does not divide dim 24"),
        (ClassifierFacts(num_heads=4, image_size=20), "pos_embedding"),
        (ClassifierFacts(num_heads=4, patch_size=5), "which is not 3 channels of 5 x 5 pixels"),
        (ClassifierFacts(num_heads=4, channels=5), "give patch_size and channels"),
        (ClassifierFacts(num_heads=4, sparsity=-1), "sparsity must be"),
    ],
    ids=str,
)
def test_facts_that_do_not_fit_are_refused(facts: ClassifierFacts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_published(state_of("crate"), facts)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"channels": 1}, "patches of 4 x 4 pixels and 3 channels: leave out"),
        ({"patch_size": (2, 8)}, "patches of 4 x 4 pixels and 3 channels: leave out"),
        ({"pool": "mean-all"}, "crate-alpha scores the class token alone"),
    ],
    ids=str,
)
def test_facts_that_are_not_those_of_an_alpha_are_refused(
    facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_published(state_of("crate_alpha"), replace(FACTS, **facts))
    from_published(state_of("crate_alpha"), replace(FACTS, channels=3, patch_size=4))


def test_an_alpha_that_pools_all_tokens_has_no_published_form() -> None:
    model = CrateClassifier(FAMILY["crate-alpha"], num_classes=3, pool="mean-all")
    with pytest.raises(ValueError, match=r"crate-alpha cannot express .*pool 'mean-all'"):
        to_published(model)


def test_an_encoder_alone_gets_no_random_head() -> None:
    state = {k: v for k, v in state_of("crate").items() if not k.startswith("mlp_head.1")}
    with pytest.raises((ValueError, IncompleteWeightsError), match=r"mlp_head.1.weight is missing"):
        from_published(state, FACTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "tssa"}, "attention 'tssa' \\(not 'mssa'\\)"),
        ({"positions": "sincos"}, "positions 'sincos'"),
        ({"head_norm": "tokens"}, "head_norm 'tokens'"),
        ({"sparsity": 0.5}, "sparsity 0.5 \\(not 0.1\\)"),
        ({"compression_step": 0.5}, "compression_step 0.5"),
        ({"sparse_step": "none"}, "sparse_step 'none' \\(not 'ista'\\)"),
        ({"layer_norm_eps": 0.1}, "layer_norm_eps 0.1 \\(not 1e-05\\)"),
        ({"final_norm_eps": 1e-6}, "final_norm_eps 1e-06 \\(not 1e-05\\)"),
    ],
    ids=str,
)
def test_models_that_the_published_code_cannot_express(
    changes: dict[str, Any], message: str
) -> None:
    config = replace(FAMILY["crate"], **changes)
    with pytest.raises(ValueError, match=message):
        to_published(CrateClassifier(config, num_classes=3, pool="cls"))
    with pytest.raises(ValueError, match="pool 'mean'"):
        to_published(CrateClassifier(FAMILY["crate"], num_classes=3, pool="mean"))
    assert layout_of_classifier({"x": torch.zeros(1)}) is None
    with pytest.raises(ValueError, match="no tensors of a published"):
        from_published({"x": torch.zeros(1)})
    assert tiny().head_norm == "tokens"
