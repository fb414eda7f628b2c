"""Attention alone on known subspaces: stored numbers, the definition in loops, the theorem."""

import math

import pytest
import torch
from model_cases import family_golden, gap

from crate_mae.whitebox.attention_only import signal_to_noise, thresholded_step
from crate_mae.whitebox.denoising import subspace_attention
from crate_mae.whitebox.measures import coding_rate, compression_gradient, head_coding_rates

GOLDEN, CONFIG = family_golden("aot_derived")
SETTING = CONFIG["theorem"]


def test_layers_and_ratios_agree_with_stored_numbers() -> None:
    tokens, labels = GOLDEN["theorem.in.tokens"][None], GOLDEN["theorem.in.labels"]
    bases, ratios = GOLDEN["theorem.in.U"], []
    for _ in range(SETTING["layers"]):
        ratios.append(signal_to_noise(tokens[0], labels, bases))
        tokens = thresholded_step(tokens, bases, step=SETTING["eta"], threshold=SETTING["tau"])
    ratios.append(signal_to_noise(tokens[0], labels, bases))
    assert gap(tokens[0], GOLDEN["theorem.out.tokens"]) <= 1e-10
    assert gap(torch.stack(ratios), GOLDEN["theorem.snr"]) <= 1e-9 * float(
        torch.stack(ratios).max()
    )


def test_rates_and_the_gradient_agree_with_stored_numbers() -> None:
    z, U = GOLDEN["layers.in.tokens"].double(), GOLDEN["tied.in.U"].double()
    eps_squared = CONFIG["eps_squared"]
    w = torch.einsum("bnd,kdp->bknp", z, U)
    rates = coding_rate(z, eps_squared=eps_squared, normalize=False)
    assert gap(rates, GOLDEN["exact.R_per_image"]) <= 1e-10
    rates = head_coding_rates(w, eps_squared=eps_squared, normalize=False)
    assert gap(rates, GOLDEN["exact.Rc_per_image_and_head"]) <= 1e-10
    gradient = compression_gradient(z, U, eps_squared=eps_squared)
    assert gap(gradient, GOLDEN["exact.gradient"]) <= 1e-10


def test_the_first_layers_raise_the_ratio_as_the_theorem_says() -> None:
    tokens, labels = GOLDEN["theorem.in.tokens"][None], GOLDEN["theorem.in.labels"]
    bases = GOLDEN["theorem.in.U"]
    before = signal_to_noise(tokens[0], labels, bases)
    after = signal_to_noise(
        thresholded_step(tokens, bases, step=0.5, threshold=0.6)[0], labels, bases
    )
    assert gap(after / before, torch.full((2,), 1.3, dtype=torch.float64)) < 1e-9


def test_a_step_by_its_definition() -> None:
    torch.manual_seed(0)
    bases = torch.linalg.qr(torch.randn(2, 5, 2, dtype=torch.float64)).Q
    z = 2 * torch.randn(1, 4, 5, dtype=torch.float64)
    found = thresholded_step(z, bases, step=0.3, threshold=0.4)[0]
    for n in range(4):
        expected = z[0, n].clone()
        for U in bases:
            scores = [math.exp(float((z[0, n] @ U) @ (z[0, m] @ U))) for m in range(4)]
            for m in range(4):
                if scores[m] / sum(scores) > 0.4:
                    expected += 0.3 * 0.4 * U @ (U.mT @ z[0, m])
        assert gap(found[n], expected) < 1e-12
    with pytest.raises(ValueError, match="between 0 and 1, not 1"):
        thresholded_step(z, bases, step=0.3, threshold=1)


@pytest.mark.parametrize(("name", "temperature"), [("scaled", math.sqrt(6)), ("unscaled", 1.0)])
def test_tied_attention_agrees_with_stored_numbers(name: str, temperature: float) -> None:
    tokens = GOLDEN["layers.in.tokens"].double()
    moved = subspace_attention(tokens, GOLDEN["tied.in.U"].double(), temperature=temperature)
    assert gap(tokens + CONFIG["eta"] * moved, GOLDEN[f"tied.{name}.out"]) <= 1e-10
