"""Images that are alike: nearest ones by loops, doubles that were put in, images of their own."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from source_cases import names_of, opened

from crate_mae.evaluation.features import Features
from crate_mae.evaluation.neighbours import (
    FeatureSpace,
    has_more_pairs,
    near_duplicates,
    pictures,
)
from crate_mae.models.config import Preprocess
from crate_mae.sources.inputs import open_images


def features(values: torch.Tensor, names: list[str] | None = None) -> Features:
    return Features(
        values=values,
        labels=None,
        names=[f"image{i}" for i in range(len(values))] if names is None else names,
        class_names=None,
        pool="mean",
        unreadable=[],
    )


def similarity_by_loops(values: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two rows after standardising by the columns of a set, in float64."""
    mean, std = values.mean(0), values.std(0)
    x, y = (a - mean) / std, (b - mean) / std
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def test_nearest_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(40, 6, generator=generator) * 3 + 100
    asked = torch.randn(5, 6, generator=generator) * 3 + 100
    found = FeatureSpace(features(known)).nearest_to(features(asked, list("abcde")), 7)
    exact, queries = known.double().numpy(), asked.double().numpy()
    for row, pairs in enumerate(found):
        expected = [similarity_by_loops(exact, queries[row], other) for other in exact]
        order = sorted(range(40), key=lambda index: -expected[index])
        assert [pair.second for pair in pairs] == order[:7]
        assert [pair.similarity for pair in pairs] == pytest.approx(
            [expected[index] for index in order[:7]], abs=1e-4
        )


def test_an_image_is_not_its_own_neighbour() -> None:
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    known = features(values)
    for row, pairs in enumerate(FeatureSpace(known).nearest_to(known, 3)):
        assert len(pairs) == 3
        assert row not in [pair.second for pair in pairs]
    few = FeatureSpace(features(values[:2])).nearest_to(features(values[:1]), 5)
    assert [pair.second for pair in few[0]] == [1], "no more than there are"


def test_pairs_and_outliers_of_clusters() -> None:
    """Two clusters, a pair of equal rows in one, and a row far from both."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.full((21, 12), 5.0)
    directions[10:20] = -5
    directions[20] = 9 * torch.tensor([1.0, -1.0]).repeat(6)
    values = directions + 0.5 * torch.randn(21, 12, generator=generator)
    values[7] = values[3]
    space = FeatureSpace(features(values))
    pairs = space.similar_pairs(0.999)
    assert [(pair.first, pair.second) for pair in pairs] == [(3, 7)]
    assert pairs[0].similarity == pytest.approx(1, abs=1e-5)
    assert space.outliers(3, neighbours=4)[0].first == 20
    similarities = [alone.similarity for alone in space.outliers(21, neighbours=4)]
    assert similarities == sorted(similarities)
    heard = []
    space.similar_pairs(progress=lambda done, total: heard.append((done, total)))
    assert heard == [(21, 21)]


def test_doubles_are_alike_in_their_pixels_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(6):
        pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    first = np.asarray(Image.open(tmp_path / "1.png"))
    Image.fromarray((first * 0.98).astype(np.uint8)).save(tmp_path / "6.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    source = open_images([str(tmp_path)])
    prepared = Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3)
    names = [source.name(index) for index in range(7)]
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    values[6] = values[1] + 1e-3  # alike in truth
    values[4] = values[0] + 1e-3  # alike to the features alone
    space = FeatureSpace(features(values, names))
    assert len(space.similar_pairs()) == 2
    (pair,) = near_duplicates(space, source, prepared)
    assert (pair.first, pair.second) == (1, 6)
    second = np.asarray(Image.open(tmp_path / "6.png"))
    apart = np.sqrt(np.mean((first / 255 - second / 255) ** 2))
    assert pair.pixels == pytest.approx(apart, abs=1e-4)
    assert near_duplicates(space, source, prepared, pixels=1e-6) == []
    (shown,) = pictures(source, space.features, prepared, [6])
    np.testing.assert_allclose(shown.permute(1, 2, 0).numpy(), second / 255, atol=1e-5)
    assert pictures(source, space.features, prepared, []) == []


def test_pairs_that_are_left_out_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three pictures of five images each: 30 pairs, of which the 4 most similar are asked for."""
    generator = np.random.default_rng(0)
    for index in range(3):
        pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        for copy in range(5):
            Image.fromarray(pixels).save(tmp_path / f"{index}{copy}.png")
    source = open_images([str(tmp_path)])
    names = [source.name(index) for index in range(15)]
    noise = torch.randn(15, 6, generator=torch.Generator().manual_seed(4))
    values = torch.eye(6)[:3].repeat_interleave(5, dim=0) + 1e-3 * noise
    space = FeatureSpace(features(values[:, :3], names))
    prepared = Preprocess(size=(8, 8))
    every = near_duplicates(space, source, prepared)
    alike = [pair for pair in combinations(range(15), 2) if pair[0] // 5 == pair[1] // 5]
    assert sorted((pair.first, pair.second) for pair in every) == alike
    assert not caplog.records
    given = space.similar_pairs()
    assert near_duplicates(space, source, prepared, most=4, candidates=given) == every[:4]
    assert not caplog.records, "who gives them knows how many they are"
    assert near_duplicates(space, source, prepared, most=4) == every[:4]
    assert "the 4 most similar of 30 candidate pairs alone" in caplog.text
    assert "nearest alone" not in caplog.text


@pytest.mark.parametrize(("copies", "more"), [(8, False), (12, True)])
def test_many_equal_images_have_more_pairs_than_are_found(copies: int, more: bool) -> None:
    """Of each image 8 others are looked at; 12 equal ones are 66 pairs."""
    values = torch.eye(3).repeat_interleave(copies, dim=0)
    space = FeatureSpace(features(values))
    found = space.similar_pairs()
    assert has_more_pairs(space, found) == more
    every = 3 * copies * (copies - 1) // 2
    assert (len(found) < every) == more
    assert not has_more_pairs(FeatureSpace(features(values[:9])), [])


def test_what_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        FeatureSpace(features(torch.ones(1, 4)))
    with pytest.raises(ValueError, match="one row of features"):
        FeatureSpace(features(torch.ones(3, 4, 2)))
    space = FeatureSpace(features(torch.eye(3)))
    with pytest.raises(ValueError, match="at least one neighbour"):
        space.nearest_to(features(torch.eye(3)), 0)


def test_another_image_of_the_same_name_is_a_neighbour() -> None:
    """As of two folders that both have a `1.png`."""
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    space = FeatureSpace(features(values))
    asked = features(torch.stack([values[3], values[3]]), ["image3", "image5"])
    same, other = space.nearest_to(asked, 8)
    assert 3 not in [pair.second for pair in same]
    assert other[0].second == 3
    assert 5 in [pair.second for pair in other]


def test_images_of_any_range_are_compared_and_shown_over_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    stack = generator.uniform(0, 4000, (6, 8, 8)).astype(np.float32)
    stack[5] = stack[1] * 0.99
    np.save(tmp_path / "x.npy", stack)
    source = opened(f"npy:{tmp_path / 'x.npy'}")
    prepared = Preprocess(
        size=(8, 8), channels=1, mean=(2000,), std=(1000,), low=(0,), high=(4000,)
    )
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    values[5] = values[1] + 1e-3  # alike in truth
    values[4] = values[0] + 1e-3  # alike to the features alone
    space = FeatureSpace(features(values, names_of(source)))
    (pair,) = near_duplicates(space, source, prepared)
    assert (pair.first, pair.second) == (1, 5)
    assert pair.pixels == pytest.approx(np.sqrt(np.mean((stack[1] * 0.01 / 4000) ** 2)), rel=1e-3)
    shown = torch.stack(pictures(source, space.features, prepared, [0, 1, 2]))
    np.testing.assert_allclose(shown[:, 0].numpy(), stack[:3] / 4000, atol=1e-5)
