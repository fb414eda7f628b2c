"""Every operator and combination in the whole model: what must hold of any of them."""

import copy
import io
import itertools
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from model_cases import FAMILY, gap, images_for, make, mask_for, tiny

from crate_mae import save_model
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import (
    AttentionKind,
    AttentionSkip,
    Embedding,
    ModelConfig,
    OutputProjection,
    Positions,
    SparseStepKind,
)
from crate_mae.models.half_steps import half_steps
from crate_mae.models.operators import ATTENTION, SPARSE_STEPS
from crate_mae.weights.weights_folder import load_model

few = settings(max_examples=25, deadline=None)

combinations = st.fixed_dictionaries(
    {
        "attention": st.sampled_from(get_args(AttentionKind)),
        "output_projection": st.sampled_from(get_args(OutputProjection)),
        "attention_skip": st.sampled_from(get_args(AttentionSkip)),
        "compression_step": st.sampled_from([None, 0.3]),
        "sparse_step": st.sampled_from(get_args(SparseStepKind)),
        "overcomplete": st.sampled_from([1, 2]),
        "embedding": st.sampled_from(get_args(Embedding)),
        "positions": st.sampled_from(get_args(Positions)),
        "mask_tokens": st.sampled_from(["encoder", "decoder"]),
        "subspace_bias": st.booleans(),
        "image_size": st.sampled_from([(8, 12), (4, 12)]),
        "channels": st.sampled_from([1, 3]),
        "decoder_num_heads": st.sampled_from([2, 3]),
        "orthonormal_subspaces": st.booleans(),
        "bounded_steps": st.booleans(),
        "mirrored_decoder": st.booleans(),
    }
)


def built(values: dict[str, Any]) -> ModelConfig | None:
    """The configuration of values that go together; None where they are refused with a reason."""
    clash = (
        (values["attention"] == "exact" and values["output_projection"] != "tied")
        or (values["attention"] != "tssa" and values["subspace_bias"])
        or (values["sparse_step"] in ("ista", "none") and values["overcomplete"] > 1)
        or (
            values["bounded_steps"]
            and not (
                values["orthonormal_subspaces"]
                and values["output_projection"] == "tied"
                and values["compression_step"]
            )
        )
        or (
            values["mirrored_decoder"]
            and (
                values["decoder_num_heads"] != 3
                or values["sparse_step"] in ("overcomplete", "decoupled")
                or (values["sparse_step"] == "auto" and values["overcomplete"] > 1)
            )
        )
    )
    if not clash:
        return tiny(**values, sparsity=0.05)
    with pytest.raises(ValueError, match=r"invalid model configuration: .{30}"):
        tiny(**values, sparsity=0.05)
    return None


def test_every_name_has_an_operator() -> None:
    assert set(ATTENTION) == set(get_args(AttentionKind))
    assert set(SPARSE_STEPS) == set(get_args(SparseStepKind)) - {"auto"}


@given(values=combinations)
@few
def test_any_combination_completes_masked_images_or_is_refused(values: dict[str, Any]) -> None:
    config = built(values)
    if config is None:
        return
    model = make(config)
    images = images_for(config, batch=3)
    mask = mask_for(config, batch=3, removed=1)
    out = model(images, mask)
    assert out.prediction.shape == (3, config.num_patches, config.patch_dim)
    torch.autograd.backward(out.loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    # An image does not know of the others in its batch.
    alone = model(images[1:2], mask[1:2])
    assert gap(alone.prediction, out.prediction[1:2]) < 1e-4
    model.eval()
    assert gap(model.encode(images[1:2]), model.encode(images)[1:2]) < 1e-4
    again = copy.deepcopy(model)
    assert torch.equal(again.encode(images), model.encode(images))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = CrateMAE(config).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.encode(images), model.encode(images))


@pytest.mark.parametrize("name", FAMILY)
def test_the_walk_is_the_model(name: str) -> None:
    config = FAMILY[name]
    model, images = make(config).eval(), images_for(config)
    tokens = model.encoder.embed(images)
    for step in half_steps(model.encoder.layers, tokens):
        tokens = step.after
    assert gap(model.encoder.norm(tokens), model.encode(images)) < 1e-5
    steps = list(model.half_steps(images))
    assert [s.attends for s in steps[:4]] == [True, False, True, False]
    scores = dict(model.tensors_to_loss(images, mask_for(config, removed=1)))
    assert gap(scores["loss"], model(images, mask_for(config, removed=1)).loss) < 1e-5


@pytest.mark.parametrize("name", FAMILY)
def test_a_classifier_of_any_family_learns(name: str) -> None:
    config, pools = FAMILY[name], ("cls", "mean", "mean-all")
    images = images_for(config)
    for pool in pools:
        torch.manual_seed(0)
        model = CrateClassifier(config, num_classes=3, pool=pool)  # type: ignore[arg-type]
        scores = model(images)
        torch.autograd.backward(scores.square().sum())
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert float(parameter.grad.abs().sum()) > 0, key
        assert gap(dict(model.tensors_to_scores(images))["scores"], scores) < 1e-5
        steps = torch.zeros(config.depth, 2)
        assert not torch.equal(model(images, steps), scores)


@pytest.mark.parametrize("name", FAMILY)
def test_weights_alone_rebuild_it(name: str, tmp_path: Any) -> None:
    model = make(FAMILY[name]).eval()
    save_model(model, tmp_path / "weights")
    again = load_model(tmp_path / "weights")
    assert again.config == model.config
    images = images_for(model.config)
    assert torch.equal(again.encode(images), model.encode(images))
    classifier = CrateClassifier.from_pretrained(model, num_classes=2, pool="mean-all").eval()
    save_model(classifier, tmp_path / "classifier")
    loaded = load_model(tmp_path / "classifier")
    assert isinstance(loaded, CrateClassifier)
    assert torch.equal(loaded(images), classifier(images))


@pytest.mark.parametrize("name", ["crate", "crate-alpha", "tost", "aot", "exact"])
def test_compiled_it_computes_the_same(name: str) -> None:
    config = FAMILY[name]
    model, images = make(config), images_for(config)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    mask = mask_for(config, removed=2)
    first, second = model(images, mask).loss, compiled(images, mask).loss
    assert gap(first, second) < 1e-5
    torch.autograd.backward(second)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", FAMILY)
def test_double_precision_and_half_run(name: str) -> None:
    config = FAMILY[name]
    model, images = make(config).eval(), images_for(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bool(model(images, mask_for(config, removed=2)).loss.isfinite())
    exact = model.double().encode(images.double())
    assert exact.dtype == torch.float64
    assert gap(model.float().encode(images), exact) < 1e-3


def test_what_differs_between_options_differs_in_the_numbers() -> None:
    """Two configurations of one pair of weights never compute the same by accident."""
    images = images_for(tiny())
    features = []
    for skip, step in itertools.product(get_args(AttentionSkip), (None, 0.3, 1.0)):
        model = make(tiny(attention_skip=skip, compression_step=step)).eval()
        features.append(model.encode(images))
    for first, second in itertools.combinations(features, 2):
        assert gap(first, second) > 1e-3
