"""Few-shot sets: the right number of every class, by the seed, or an error that names the class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crate_mae.sources.splits import few_shot_indices


@given(
    labels=st.lists(st.one_of(st.none(), st.integers(-1, 4)), max_size=60),
    shots=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_that_many_of_every_class(labels: list[int | None], shots: int, seed: int) -> None:
    known = [label for label in labels if label is not None and label >= 0]
    counts = {label: known.count(label) for label in known}
    if not counts or min(counts.values()) < shots:
        with pytest.raises(ValueError, match=r"label|asked for"):
            few_shot_indices(labels, shots, seed)
        return
    chosen = few_shot_indices(labels, shots, seed)
    assert chosen == sorted(set(chosen)) == few_shot_indices(labels, shots, seed)
    drawn = [labels[i] for i in chosen]
    assert {label: drawn.count(label) for label in counts} == dict.fromkeys(counts, shots)
    assert len(drawn) == shots * len(counts)


def test_seeds_draw_different_images_and_every_image() -> None:
    labels = [0, 1] * 10
    sets = [few_shot_indices(labels, 2, seed) for seed in range(60)]
    assert len({tuple(chosen) for chosen in sets}) > 30
    assert {index for chosen in sets for index in chosen} == set(range(20))


def test_scarce_classes_are_named() -> None:
    with pytest.raises(ValueError, match=r"3 .* class 1 has 2, class 7 has 1: ask for at most 1, "):
        few_shot_indices([0, 0, 0, 1, 1, 7], 3, 0)
    with pytest.raises(ValueError, match=r"but class owl has 2, class 7 has 1: ask"):
        few_shot_indices([0, 0, 0, 1, 1, 7], 3, 0, ["cat", "owl"])
    with pytest.raises(ValueError, match="class 9 has 1 and 5 more"):
        few_shot_indices(list(range(15)), 2, 0)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        few_shot_indices([0, 1], 0, 0)
