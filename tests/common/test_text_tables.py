"""Tables as text: what stands under what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crate_mae.common.text_tables import aligned, named_values

WORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=12)


def test_numbers_end_and_words_begin_at_one_place() -> None:
    rows = [["", "images", "setting"], ["model", "7", "k = 1"], ["raw pixels", "1,000", ""]]
    assert aligned(rows, left=(0, 2), indent="> ") == [
        ">             images  setting",
        "> model            7  k = 1",
        "> raw pixels   1,000",
    ]


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(st.lists(WORDS, min_size=width, max_size=width), min_size=1)
    )
)
def test_every_cell_stands_in_its_column(rows: list[list[str]]) -> None:
    lines = aligned(rows, left=range(0, 5, 2))
    begin = 0
    for column, cells in enumerate(zip(*rows, strict=True)):
        width = max(map(len, cells))
        for line, cell in zip(lines, cells, strict=True):
            shown = line[begin : begin + width].ljust(width)
            assert shown == (cell.ljust(width) if column % 2 == 0 else cell.rjust(width))
        begin += width + 2


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        aligned([["a", "b"], ["c"]])


def test_long_values_go_on_below_their_beginning() -> None:
    rows = [("run", "one two three four"), ("", ""), ("operations", "five")]
    assert named_values(rows, wrap=23) == [
        "run         one two",
        "            three four",
        "",
        "operations  five",
    ]
    assert named_values(rows)[0] == "run         one two three four"
    assert named_values([]) == []
