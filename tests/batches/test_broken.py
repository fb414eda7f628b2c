"""Images that cannot be read: collected as they come, named once, counted against a share."""

import pytest
from data_cases import Pictures

from crate_mae.batches.broken import BrokenImages, TooManyBrokenImagesError, listed, readable


def test_samples_pass_and_the_others_are_collected_as_they_come() -> None:
    broken: list[tuple[str, str]] = []
    samples = readable(Pictures(6, broken=(1, 4)).samples(), broken)
    assert [next(samples).name, broken] == ["picture-000", []]
    assert [next(samples).name, broken] == ["picture-002", [("picture-001", "torn")]]
    assert [sample.name for sample in samples] == ["picture-003", "picture-005"]
    assert broken == [("picture-001", "torn"), ("picture-004", "torn")]


def test_a_run_that_goes_on_names_only_what_is_new(caplog: pytest.LogCaptureFixture) -> None:
    images = BrokenImages(allowed=0.5, total=4)
    images.restore({"a": "torn"})
    images.note([("a", "torn"), ("b", "empty"), ("b", "empty")])
    assert images == {"a": "torn", "b": "empty"}
    assert [record.getMessage() for record in caplog.records] == [
        "unreadable image passed over: b (empty)"
    ]


def test_more_than_the_allowed_share_stops_and_that_much_does_not() -> None:
    images = BrokenImages(allowed=0.5, total=4)
    images.note([("a", "torn"), ("b", "empty")])
    images.stop_if_too_many()
    images.note([("c", "torn")])
    with pytest.raises(
        TooManyBrokenImagesError,
        match=r"3 of 4 .* 0\.5: .* set data\.max_broken to 0\.75\n  a: torn\n  b: empty",
    ):
        images.stop_if_too_many()


def test_a_long_list_is_cut_with_a_count() -> None:
    broken = [(name, "torn") for name in "abcd"]
    assert listed(broken, 4) == "a (torn); b (torn); c (torn); d (torn)"
    assert listed(broken, 2) == "a (torn); b (torn) and 2 more"
