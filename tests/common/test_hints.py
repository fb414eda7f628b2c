"""Words of a command line, looked at before anything heavy is imported."""

import pytest

from crate_mae.common.hints import option_value


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--out", "1", "--b=2", "--out=3"], "3"),
        (["--out=1", "--out", "2"], "2"),
        (["--outer", "1"], None),
        (["--out"], ""),
        ([], None),
    ],
)
def test_the_last_value_of_an_option_counts(words: list[str], value: str | None) -> None:
    assert option_value(words, "--out") == value
