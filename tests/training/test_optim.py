"""Parameter groups and schedules against their definitions."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crate_mae.models.autoencoder import build_model
from crate_mae.training.config import OptimConfig
from crate_mae.training.optim import decayed_names, parameter_groups, warmup_cosine


def test_norms_biases_and_tokens_are_not_decayed() -> None:
    model = build_model("debug")
    decayed, free = parameter_groups(model, 0.05, decayed_names(model), learning_rate=1e-3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.05
    assert free["weight_decay"] == 0.0
    in_free = {names[id(p)] for p in free["params"]}
    in_decayed = {names[id(p)] for p in decayed["params"]}
    assert in_free | in_decayed == set(names.values())
    assert not in_free & in_decayed
    expected = {n for n in names.values() if "norm" in n or "bias" in n or "_token" in n}
    assert in_free == expected


@given(st.integers(1, 500), st.integers(0, 100), st.floats(0, 1))
def test_warmup_cosine_follows_its_formula(total: int, warmup: int, final: float) -> None:
    warmup = min(warmup, total)
    for step in range(total + 1):
        share = warmup_cosine(step, total=total, warmup=warmup, final=final)
        if step < warmup:
            assert share == pytest.approx((step + 1) / warmup)
        elif total > warmup:
            angle = math.pi * (step - warmup) / (total - warmup)
            assert share == pytest.approx(final + (1 - final) * (math.cos(angle) + 1) / 2)
        assert 0 <= share <= 1


def test_learning_rate_scales_with_the_batch() -> None:
    assert OptimConfig(base_lr=1e-3, batch_size=1024).peak_lr == pytest.approx(4e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("base_lr", 0.0),
        ("base_lr", math.nan),
        ("base_lr", math.inf),
        ("clip", 0.0),
        ("clip", math.nan),
        ("warmup_epochs", math.nan),
        ("warmup_epochs", math.inf),
        ("warmup_epochs", -1.0),
    ],
)
def test_impossible_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        OptimConfig(**{field: value})  # type: ignore[arg-type]


def test_a_warm_up_longer_than_the_run_is_shortened_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert OptimConfig(epochs=5, warmup_epochs=5).warmup_epochs == 5
    assert not caplog.records
    short = OptimConfig(epochs=5, warmup_epochs=20)
    assert short.warmup_epochs == 0.5
    assert "optim.warmup_epochs 20 is longer than the whole run of 5 epochs" in caplog.text
    caplog.clear()
    assert replace(short, batch_size=8).warmup_epochs == 0.5, "said once"
    assert not caplog.records
