"""Every way of computing gives the same numbers, and does the products it says it does."""

from dataclasses import replace

import pytest
import torch
from model_cases import VARIANTS, gap, gradients, images_for, make, mask_for, tiny

from crate_mae.models.cost import counted_flops
from speed.arithmetic import (
    WrittenCrate,
    explicit_attention,
    folded_product,
    fused_attention,
    three_products,
    two_products,
)
from speed.limit import least_flops
from speed.steps import Job, make_step
from speed.subjects import SUBJECTS

WAYS = {
    "reference": {"attend": explicit_attention, "gradient_step": three_products},
    "two products": {"attend": fused_attention, "gradient_step": two_products},
    "folded": {"attend": fused_attention, "gradient_step": folded_product},
}
SAME = [name for name, subject in SUBJECTS.items() if subject.same]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "variant",
    [n for n, c in VARIANTS.items() if c.mask_tokens == "encoder" and c.overcomplete == 1],
)
def test_the_written_arithmetic_is_the_librarys(variant: str, way: str) -> None:
    config = VARIANTS[variant]
    model, images, mask = make(config), images_for(config), mask_for(config)
    written = WrittenCrate(model, **WAYS[way])  # type: ignore[arg-type]
    with torch.no_grad():
        assert gap(written.encode(images), model.encode(images)) < 1e-5
    expected = model(images, mask).loss
    expected.backward()
    wanted = {name: g.clone() for name, g in gradients(model).items() if g is not None}
    model.zero_grad()
    loss = written(images, mask)
    loss.backward()
    assert gap(loss, expected) < 1e-5
    found = gradients(model)
    assert set(wanted) == {name for name, g in found.items() if g is not None}
    for name, gradient in wanted.items():
        assert gap(found[name], gradient) < 1e-5 * max(1.0, float(gradient.abs().max())), name  # type: ignore[arg-type]


def test_subjects_of_one_model_have_one_loss_and_one_update() -> None:
    job = Job(config=tiny(), work="train", batch=3)
    losses = {}
    for name in SAME:
        step = make_step(name, job)
        losses[name] = [float(step()), float(step()), float(step())]
    assert len(losses) == 4
    first = losses["crate"]
    assert first[0] > first[2]  # it trains
    for name, values in losses.items():
        assert values == pytest.approx(first, abs=1e-5), name


def test_features_of_one_model_agree() -> None:
    job = Job(config=tiny(), work="encode", batch=3)
    features = [make_step(name, job)() for name in SAME]
    assert max(gap(found, features[0]) for found in features) < 1e-5


def test_each_way_does_the_products_it_says() -> None:
    config, images = tiny(image_size=16, patch_size=4, dim=32, num_heads=4), 24
    tokens, d = images * 17, 32
    embed = 2 * images * 16 * (4 * 4 * 3) * d
    mssa = 2 * (2 * tokens * d * d) + 2 * (2 * images * 17**2 * d)  # U, W; w w^T, weights times w
    product = 2 * tokens * d * d
    ista = {
        "crate-reference": 3 * product,
        "crate-two-product": 2 * product,
        "crate-folded": product + 2 * d**3,
    }
    job = Job(config=config, work="encode", batch=images)
    for name, own in ista.items():
        step = make_step(name, job)
        assert counted_flops(step) == embed + config.depth * (mssa + own), name
    assert least_flops(job) == embed + config.depth * (mssa + product)


def test_the_least_for_a_step_is_the_cheaper_way() -> None:
    many = Job(config=tiny(dim=24), work="train", batch=40)  # 280 tokens of width 24: x M
    few = replace(many, batch=1)
    for job, name in ((many, "crate-folded"), (few, "crate-two-product")):
        flops = {n: counted_flops(make_step(n, job)) for n in SAME}
        assert least_flops(job) == min(flops.values()), flops
        written = {n: count for n, count in flops.items() if n != "crate"}
        assert written[name] == min(written.values()), flops


def test_visible_only_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="mask tokens in the encoder"):
        WrittenCrate(make(tiny(mask_tokens="decoder")), **WAYS["folded"])  # type: ignore[arg-type]
