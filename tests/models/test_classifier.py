"""The classifier on the CRATE encoder."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_cases import VARIANTS, gap, images_for, make, tiny

from crate_mae.models.classifier import CrateClassifier
from crate_mae.models.config import MAX_CLASSES, Preprocess


@pytest.mark.parametrize("pool", ["cls", "mean", "mean-std", "layers"])
def test_scores_are_a_linear_map_of_pooled_features(pool: Any) -> None:
    config = tiny(depth=5)
    torch.manual_seed(0)
    classifier = CrateClassifier(config, num_classes=5, pool=pool).double().eval()
    torch.nn.init.normal_(classifier.head.bias)
    images = images_for(config).double()
    scores, tokens = classifier(images), classifier.encode(images).detach()
    by_layer = classifier.layer_tokens(images, [3, 4, 5])
    assert scores.shape == (2, 5)
    for b in range(2):
        if pool == "cls":
            row = tokens[b, 0]
        elif pool == "mean":
            row = mean_and_spread(tokens[b])[: config.dim]
        elif pool == "mean-std":
            row = mean_and_spread(tokens[b])
        else:  # of the last four places
            states = [*(by_layer[layer][b].detach() for layer in (3, 4, 5)), tokens[b]]
            row = torch.cat([mean_and_spread(each) for each in states])
        expected = classifier.head.weight @ row + classifier.head.bias
        assert gap(scores[b], expected) <= 1e-12


def mean_and_spread(tokens: torch.Tensor) -> torch.Tensor:
    """Of the six patches of tokens (7, d), without the class token, step by step."""
    mean = sum(tokens[i] for i in range(1, 7)) / 6
    variance = sum((tokens[i] - mean) ** 2 for i in range(1, 7)) / 6
    return torch.cat([torch.as_tensor(mean), torch.as_tensor(variance) ** 0.5])


@pytest.mark.parametrize("pool", ["mean", "mean-std", "layers"])
def test_recomputed_layers_and_dropped_steps_under_every_pool(pool: Any) -> None:
    """Stochastic depth reaches the layers below the last, and recomputing changes no gradient."""
    config = tiny(depth=3)
    torch.manual_seed(0)
    classifier = CrateClassifier(config, num_classes=3, pool=pool).double().train()
    images, keep = images_for(config).double(), torch.ones(3, 2, dtype=torch.float64)
    assert gap(classifier(images, keep), classifier(images)) < 1e-12
    keep[0, 1] = 0  # the first layer of the second image
    apart = (classifier(images, keep) - classifier(images)).detach().abs().amax(dim=1)
    assert float(apart[0]) < 1e-12
    assert float(apart[1]) > 1e-6
    found = []
    for recompute in (False, True):
        classifier.zero_grad()
        classifier.recompute_layers(recompute)
        classifier(images, keep).pow(2).sum().backward()
        gradients = {key: p.grad for key, p in classifier.named_parameters()}
        found.append({key: each.clone() for key, each in gradients.items() if each is not None})
    assert len(found[0]) == len(found[1]) == len(gradients)
    for key, gradient in found[0].items():
        assert gap(found[1][key], gradient) < 1e-12, key


@pytest.mark.parametrize("pool", ["mean-std", "layers"])
def test_a_norm_made_for_one_token_takes_no_wider_pool(pool: Any) -> None:
    with pytest.raises(ValueError, match="with head_norm 'pooled' the final norm acts on what was"):
        CrateClassifier(tiny(head_norm="pooled"), num_classes=3, pool=pool)


@pytest.mark.parametrize("pool", ["cls", "mean", "mean-all"])
def test_the_norm_acts_on_what_was_pooled(pool: Any) -> None:
    config = tiny(head_norm="pooled")
    torch.manual_seed(0)
    classifier = CrateClassifier(config, num_classes=3, pool=pool).double().eval()
    images = images_for(config).double()
    tokens = classifier.layer_tokens(images, [config.depth])[config.depth]
    own = {"cls": [0], "mean": range(1, 7), "mean-all": range(7)}[pool]
    for image, found in zip(tokens, classifier(images), strict=True):
        pooled = sum(image[i] for i in own) / len(own)
        mean = pooled.mean()
        variance = ((pooled - mean) ** 2).mean()
        normed = (pooled - mean) / (variance + 1e-6).sqrt()
        assert gap(found, classifier.head.weight @ normed + classifier.head.bias) < 1e-12
    before = CrateClassifier(tiny(), num_classes=3, pool=pool).double().eval()
    before.load_state_dict(classifier.state_dict())
    apart = gap(before(images), classifier(images))
    assert apart < 1e-12 if pool == "cls" else apart > 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_pre_trained_encoder_is_copied(name: str) -> None:
    config = VARIANTS[name]
    model, images = make(config).eval(), images_for(config)
    channels = config.channels
    model.preprocess = Preprocess(
        size=config.image_hw, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels
    )
    names = ("cat", "dog", "owl")
    classifier = CrateClassifier.from_pretrained(
        model, num_classes=3, pool="cls", class_names=names
    ).eval()
    assert torch.equal(classifier.encode(images), model.encode(images))
    assert classifier.preprocess == model.preprocess
    assert (classifier.pool, classifier.class_names) == ("cls", names)
    assert classifier.config == config
    before = model.encode(images)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.zero_()
    assert torch.equal(model.encode(images), before)  # a copy, not the same tensors


def test_every_parameter_receives_a_gradient() -> None:
    for pool in ("cls", "mean", "mean-std", "layers"):
        classifier = CrateClassifier(tiny(), num_classes=3, pool=pool)
        loss = F.cross_entropy(classifier(images_for(tiny())), torch.tensor([0, 2]))
        loss.backward()  # type: ignore[no-untyped-call]
        for key, parameter in classifier.named_parameters():
            assert parameter.grad is not None, key
            assert float(parameter.grad.abs().max()) > 0, key


def test_head_starts_near_zero() -> None:
    torch.manual_seed(0)
    head = CrateClassifier(tiny(dim=240, num_heads=3), num_classes=100).head
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert bool((head.bias == 0).all())


def test_a_tiny_classifier_learns_four_images_by_heart() -> None:
    torch.manual_seed(0)
    classifier = CrateClassifier(tiny(dim=24), num_classes=4)
    images, labels = images_for(tiny(), batch=4), torch.arange(4)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.cross_entropy(classifier(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        assert classifier(images).argmax(dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, f"needs 2 to {MAX_CLASSES} classes, not 1"),
        ({"num_classes": -3}, "classes, not -3"),
        ({"num_classes": 10**12}, "classes, not 1000000000000"),
        (
            {"num_classes": 3, "pool": "max"},
            "pool must be one of cls, mean, mean-all, mean-std, layers, not 'max'",
        ),
        ({"num_classes": 3, "pool": "tokens"}, "mean-all, mean-std, layers, not 'tokens'"),
        ({"num_classes": 3, "class_names": ("a", "b")}, "2 class names for 3 classes"),
    ],
    ids=str,
)
def test_classifiers_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrateClassifier(tiny(), **options)


def test_images_that_do_not_fit_are_refused() -> None:
    classifier = CrateClassifier(tiny(), num_classes=2)
    with pytest.raises(ValueError, match="nearest size 8x12"):
        classifier(torch.zeros(1, 3, 9, 13))
    with pytest.raises(ValueError, match="images must be"):
        classifier(torch.zeros(1, 4, 8, 12))
