"""Limits and subsets of a source."""

import pytest
import torch
from source_cases import names_of, opened

from crate_mae.sources.address import open_source
from crate_mae.sources.base import random_subset, subset


def test_limit_is_a_fixed_random_choice_in_order() -> None:
    full = opened("digits", split="all")
    first, again = (opened("digits", split="all", limit=50, seed=3) for _ in range(2))
    other = opened("digits", split="all", limit=50, seed=4)
    assert len(first) == 50
    assert names_of(first) == names_of(again) == sorted(names_of(first))
    assert names_of(first) != names_of(other)
    assert first.class_names == full.class_names
    sample = first.load(5)
    index = names_of(full).index(sample.name)
    assert torch.equal(sample.image, full.load(index).image)
    assert first.label(5) == sample.label == full.label(index)
    assert len(opened("digits", split="all", limit=5000)) == 1797
    assert random_subset(full, 1797) is full
    for limit in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            open_source("digits", limit=limit)


def test_subsets_nest_and_check_their_indices() -> None:
    full = opened("digits", split="all")
    inner = subset(subset(full, [10, 20, 30, 40]), [3, 1])
    assert names_of(inner) == ["digits/0040", "digits/0020"]
    assert inner.facts(0) == full.facts(40)
    assert (inner.address, inner.split) == ("digits", "all")
    for index in (-1, 1797):
        with pytest.raises(ValueError, match="outside digits of 1797"):
            subset(full, [index])


def test_subset_fingerprints_depend_on_the_choice() -> None:
    full = opened("digits", split="all")
    assert subset(full, [1, 2]).fingerprint() == subset(full, [1, 2]).fingerprint()
    assert subset(full, [1, 2]).fingerprint() != subset(full, [1, 3]).fingerprint()
    assert full.fingerprint() != opened("digits").fingerprint()
