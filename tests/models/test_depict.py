"""DEPICT's decoder: the authors' numbers in both forms, counts, and what it refuses."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_cases import FAMILY, family_golden, gap, images_for, under
from torch import Tensor, nn

from crate_mae.models.depict import (
    CrateSegmenter,
    SegmentationDecoder,
    SubspaceStep,
    enlarged,
)
from crate_mae.models.encoder import Encoder
from crate_mae.weights.published_depict import depict_names, from_depict

GOLDEN, CONFIG = family_golden("depict")
FORMS = {"sa": "self", "ca": "cross"}


def published(name: str) -> SegmentationDecoder:
    return from_depict(under(GOLDEN, f"{name}.param."))


def steps_of(layers: nn.ModuleList) -> list[SubspaceStep]:
    return [layer for layer in layers if isinstance(layer, SubspaceStep)]


@pytest.mark.parametrize("name", FORMS)
def test_it_agrees_with_the_published_code(name: str) -> None:
    decoder, golden = published(name), under(GOLDEN, f"{name}.")
    grid = (CONFIG["grid"][0], CONFIG["grid"][1])
    single = decoder(GOLDEN["in.features"], grid)
    # The norm over classes magnifies rounding where cosines are close: the published code's own
    # float32 is up to 1.6e-5 from its float64.
    rounding = gap(golden["f32.masks"], golden["out.masks"])
    assert gap(single, golden["f32.masks"]) <= max(1e-5, 2 * rounding)
    decoder.double()
    features = GOLDEN["in.features"].double().requires_grad_()
    scores = decoder(features, grid)
    assert gap(scores, golden["out.masks"]) <= 1e-10
    patch = (CONFIG["patch_size"], CONFIG["patch_size"])
    size = (grid[0] * patch[0], grid[1] * patch[1])
    logits = enlarged(scores, patch, size)
    assert gap(logits, golden["out.logits"]) <= 1e-10
    loss = F.cross_entropy(logits, GOLDEN["in.labels"], ignore_index=255)
    assert gap(loss, golden["out.loss"]) <= 1e-10
    torch.autograd.backward(loss)
    assert features.grad is not None
    assert gap(features.grad, golden["grad.in.features"]) <= 1e-10
    names = depict_names(decoder.sizes)
    for own, parameter in decoder.named_parameters():
        assert parameter.grad is not None
        assert gap(parameter.grad, golden[f"grad.{names[own]}"]) <= 1e-10, own


@pytest.mark.parametrize("name", FORMS)
def test_every_step_agrees_with_the_published_code(name: str) -> None:
    decoder, golden = published(name).double(), under(GOLDEN, f"{name}.")
    tokens, classes = GOLDEN["in.features"].double(), decoder.classes.expand(2, -1, -1)
    if name == "sa":
        tokens = torch.cat([tokens, classes], dim=1)
    stem = "net" if name == "sa" else "snet"
    for index, layer in enumerate(steps_of(decoder.layers)):
        assert gap(layer.attention(tokens), golden[f"{stem}.{index}.attention"]) <= 1e-10
        step = layer(tokens)
        assert gap(step, golden[f"{stem}.{index}.step"]) <= 1e-10
        tokens = tokens + step
    if name == "sa":
        assert gap(decoder.norm(tokens), golden["decoder_norm"]) <= 1e-10
        return
    tokens = decoder.norm(tokens)
    assert gap(tokens, golden["snorm"]) <= 1e-10
    for index, layer in enumerate(steps_of(decoder.cross_layers)):
        found = layer.attention(tokens, classes)
        assert gap(found, golden[f"cnet.{index}.attention"]) <= 1e-10
        step = layer(tokens, classes)
        assert gap(step, golden[f"cnet.{index}.step"]) <= 1e-10
        classes = classes + step
    assert decoder.cross_norm is not None
    assert gap(decoder.cross_norm(classes), golden["cnorm"]) <= 1e-10


def by_definition(decoder: SegmentationDecoder, features: Tensor) -> Tensor:
    """Scores (L, C) of one image's features (L, d), a query, a head and a class at a time."""

    def step(part: SubspaceStep, tokens: list[Tensor], queries: list[Tensor]) -> list[Tensor]:
        heads, P = part.num_heads, part.subspaces
        r, found = len(P) // heads, []
        for query in queries:
            moved = torch.zeros_like(query)
            for head in range(heads):
                own = P[head * r : (head + 1) * r]
                weights = [torch.exp((own @ query) @ (own @ t) / math.sqrt(r)) for t in tokens]
                mixed = [w * (own @ t) for w, t in zip(weights, tokens, strict=True)]
                moved = moved + own.mT @ torch.stack(mixed).sum(0) / torch.stack(weights).sum()
            found.append(part.step_size * moved)
        return found

    def normed(norm: nn.LayerNorm, tokens: list[Tensor]) -> list[Tensor]:
        centred = [t - t.sum() / len(t) for t in tokens]
        return [
            c / torch.sqrt((c**2).sum() / len(c) + 1e-5) * norm.weight + norm.bias for c in centred
        ]

    patches, classes = list(features), list(decoder.classes[0])
    tokens = patches + classes if decoder.form == "self" else patches
    for part in steps_of(decoder.layers):
        x = normed(part.norm, tokens)
        tokens = [t + move for t, move in zip(tokens, step(part, x, x), strict=True)]
    tokens = normed(decoder.norm, tokens)
    if decoder.cross_norm is None:
        patches, classes = tokens[: len(patches)], tokens[len(patches) :]
    else:
        patches = tokens
        for part in steps_of(decoder.cross_layers):
            moves = step(part, normed(part.norm, patches), classes)
            classes = [c + move for c, move in zip(classes, moves, strict=True)]
        classes = normed(decoder.cross_norm, classes)
    cosines = [
        torch.stack([p @ c / torch.sqrt((p @ p) * (c @ c)) for c in classes]) for p in patches
    ]
    return torch.stack(normed(decoder.class_norm, cosines))


@pytest.mark.parametrize(
    ("sizes", "grid"),
    [
        ({"num_heads": 1, "num_layers": 1, "num_classes": 1}, (1, 1)),
        ({"num_heads": 1, "num_layers": 2, "num_classes": 3}, (1, 4)),
        ({"num_heads": 4, "num_layers": 3, "num_classes": 6}, (3, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS.values())
def test_any_sizes_are_their_definition(form: Any, sizes: dict[str, int], grid: Any) -> None:
    torch.manual_seed(0)
    decoder = SegmentationDecoder(dim=7, form=form, head_dim=5, cross_head_dim=3, **sizes).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    features = torch.randn(2, grid[0] * grid[1], 7, dtype=torch.float64, requires_grad=True)
    leaves = [features, *decoder.parameters()]
    found = decoder(features, grid)
    expected = torch.stack([by_definition(decoder, image) for image in features])
    expected = expected.mT.reshape(2, -1, *grid)
    assert gap(found, expected) <= 1e-10
    towards = torch.randn_like(found)
    slopes = torch.autograd.grad((found * towards).sum(), leaves)
    truth = torch.autograd.grad((expected * towards).sum(), leaves)
    for slope, true in zip(slopes, truth, strict=True):
        assert gap(slope, true) <= 1e-10 * max(1.0, float(true.abs().max()))


def test_classes_that_are_nearly_alike_are_told_apart_in_single_precision() -> None:
    """The norm over classes magnifies rounding: less of it is left than in cosines as they are."""
    torch.manual_seed(0)
    decoder = SegmentationDecoder(dim=24, num_classes=5, num_layers=1)
    with torch.no_grad():
        for step in steps_of(decoder.layers):
            step.step_size.zero_()
        decoder.classes.copy_(torch.randn(24) + 3e-4 * torch.randn(5, 24))
    features = torch.randn(4, 60, 24)
    patches, classes = decoder.compared(features)

    def plain(patches: Tensor, classes: Tensor) -> Tensor:
        cosines = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).mT
        return F.layer_norm(cosines, (5,)).mT.reshape(4, 5, 6, 10).double()

    exact = plain(patches.double(), classes.double())
    found = (decoder(features, (6, 10)) - exact).square().mean()
    left = (plain(patches, classes) - exact).square().mean()
    assert float(found.detach()) < 0.5 * float(left.detach())


def test_images_that_end_inside_a_patch() -> None:
    golden = under(GOLDEN, "segmenter.")
    decoder = from_depict(under(golden, "param.")).double()
    scores = decoder(golden["features"][:, 1:], (3, 4))
    assert gap(scores, golden["masks"]) <= 1e-10
    rows, columns = CONFIG["encoder"]["run_size"]
    assert gap(enlarged(scores, (4, 4), (rows, columns)), golden["out.logits"]) <= 1e-10


@pytest.mark.parametrize(
    ("form", "counts"),
    [
        ("self", [203_439, 406_575, 812_847, 1_083_695]),
        ("cross", [291_378, 582_450, 1_164_594, 1_552_690]),
    ],
)
def test_parameters_are_those_of_the_published_sizes(form: Any, counts: list[int]) -> None:
    for dim, count in zip((192, 384, 768, 1024), counts, strict=True):
        with torch.device("meta"):
            decoder = SegmentationDecoder(dim=dim, num_classes=150, form=form)
        assert sum(p.numel() for p in decoder.parameters()) == count


@pytest.mark.parametrize("form", ["self", "cross"])
@pytest.mark.parametrize("name", ["crate", "tost", "aot"])
def test_on_an_encoder_every_parameter_learns(form: Any, name: str) -> None:
    torch.manual_seed(0)
    config = FAMILY[name]
    decoder = SegmentationDecoder(
        dim=12, num_classes=4, form=form, num_layers=2, num_heads=2, head_dim=5, cross_head_dim=3
    )
    model = CrateSegmenter(Encoder(config), decoder)
    images = images_for(config)
    scores = model(images)
    assert scores.shape == (2, 4, *config.image_hw)
    torch.autograd.backward((scores * torch.randn_like(scores)).sum())
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert float(parameter.grad.abs().sum()) > 0, key
    alone: Tensor = model(images[:1])
    assert gap(alone, scores[:1]) < 1e-4  # a norm over classes of close cosines
    smaller = model(images[..., :-1, :-2])
    assert smaller.shape[-2:] == (config.image_hw[0] - 1, config.image_hw[1] - 2)


def test_what_does_not_fit_is_refused() -> None:
    decoder = SegmentationDecoder(dim=8, num_classes=3)
    with pytest.raises(ValueError, match="7 patch features do not fill a grid of 2x3"):
        decoder(torch.randn(1, 7, 8), (2, 3))
    with pytest.raises(ValueError, match="form must be"):
        SegmentationDecoder(dim=8, num_classes=3, form="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_heads must be a positive whole number, not 0"):
        SegmentationDecoder(dim=8, num_classes=3, num_heads=0)
    with pytest.raises(ValueError, match="width 12, and the decoder is for 8"):
        CrateSegmenter(Encoder(FAMILY["crate"]), decoder)
