"""What a file claims is compared with the memory that there is, before any is taken."""

from pathlib import Path

import pytest

from crate_mae.common import budgets
from crate_mae.common.budgets import check_growth, check_memory, free_memory


def test_free_memory_is_told_and_below_all_there_is() -> None:
    import os

    free = free_memory()
    assert free is not None
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_free_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "CGROUP", tmp_path)
    whole = free_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert whole is None or abs((free_memory() or 0) - whole) < whole
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    assert free_memory() == 1_500_000


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "free_memory", lambda: 4 << 30)
    check_memory(2 << 30, "they")
    with pytest.raises(ValueError, match="they take 3 GiB"):
        check_memory(3 << 30, "they")
    monkeypatch.setattr(budgets, "free_memory", lambda: 1 << 20)
    check_memory(200 << 20, "small things are never asked about, they")


def test_what_grows_as_no_images_do_is_refused() -> None:
    check_growth(1, 256 << 20, "it")
    check_growth(20 << 20, 2 << 30, "it")
    with pytest.raises(ValueError, match="it grow from"):
        check_growth(4 << 20, 7 << 30, "it")
