"""What the coding-rate term costs: how it is measured."""

import errno
import json
from pathlib import Path

import pytest
import torch

from crate_mae.common.files import NotWrittenError
from rate_cost import MOST, main, told, values_held


def test_values_that_a_gradient_needs_are_counted_once() -> None:
    a, b = torch.randn(7, requires_grad=True), torch.randn(7, requires_grad=True)
    assert values_held(lambda: (a * b).sum()) == 14  # the gradient of each factor is the other
    assert values_held(lambda: (a * a).sum()) == 7
    assert values_held(lambda: (a + b).sum()) == 0
    assert values_held(lambda: (a * b).sum(), weights=[b]) == 7


def test_a_step_and_the_term_are_set_side_by_side(tmp_path: Path) -> None:
    target = tmp_path / "cost.json"
    words = ["--preset", "debug", "--batch", "2", "--images", "2", "6", "--rounds", "1"]
    status = main([*words, "--json", str(target)])
    found = json.loads(target.read_text())
    assert status == told(found["term"], "debug")  # of so small a step the term may be more
    assert [row["images"] for row in found["term"]] == [2, 6]
    # Lengths, features and Gram matrices are small beside tokens in every layer.
    assert all(0 < row["of_the_values_held"] < 0.1 for row in found["term"])
    with pytest.raises(FileExistsError, match="not overwritten"):
        main([*words, "--json", str(target)])


def test_a_record_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        write(path, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    words = ["--preset", "debug", "--batch", "1", "--images", "2", "--rounds", "1"]
    with pytest.raises(NotWrittenError, match=r"cost\.json could not be written"):
        main([*words, "--json", str(tmp_path / "cost.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("time", "held", "status"), [(MOST, 0.0, 0), (0.0, MOST, 0), (0.021, 0.0, 1), (0.0, 0.021, 1)]
)
def test_more_than_what_is_promised_is_missed(
    capsys: pytest.CaptureFixture[str], time: float, held: float, status: int
) -> None:
    """At the worst of all sizes, in time or in values."""
    rows = [{"of_the_time": 0.0, "of_the_values_held": 0.0}]
    rows.append({"of_the_time": time, "of_the_values_held": held})
    assert told(rows, "base") == status
    assert ("Missed." in capsys.readouterr().out) == bool(status)
