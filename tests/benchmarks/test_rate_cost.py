"""What the coding-rate term costs: how it is measured."""

import json
from pathlib import Path

import pytest
import torch

from rate_cost import main, values_held


def test_values_that_a_gradient_needs_are_counted_once() -> None:
    a, b = torch.randn(7, requires_grad=True), torch.randn(7, requires_grad=True)
    assert values_held(lambda: (a * b).sum()) == 14  # the gradient of each factor is the other
    assert values_held(lambda: (a * a).sum()) == 7
    assert values_held(lambda: (a + b).sum()) == 0
    assert values_held(lambda: (a * b).sum(), weights=[b]) == 7


def test_a_step_and_the_term_are_set_side_by_side(tmp_path: Path) -> None:
    target = tmp_path / "cost.json"
    words = ["--preset", "debug", "--batch", "2", "--images", "2", "6", "--rounds", "1"]
    assert main([*words, "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    assert [row["images"] for row in found["term"]] == [2, 6]
    # Lengths, features and Gram matrices are small beside tokens in every layer.
    assert all(0 < row["of_the_values_held"] < 0.1 for row in found["term"])
    with pytest.raises(FileExistsError, match="not overwritten"):
        main([*words, "--json", str(target)])
