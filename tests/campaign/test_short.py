"""The short, fixed part of the campaign: the same changed files each time, and all kept faults."""

import mmap
from pathlib import Path

import pytest
from children import Outcome, tried
from doors import DOORS, sound_files
from mutations import KINDS, mutated

from campaign import (
    FAULTS,
    KEPT,
    MAX_KEPT_BYTES,
    _kept,
    changed_files,
    kept_faults,
    outcome_of,
    table,
)

SEED, EACH = 20260, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_files(tmp_path_factory.mktemp("doors"))


def test_changed_files_are_refused_or_read_as_they_were(folder: Path) -> None:
    figures = changed_files(folder, seed=SEED, count=EACH)
    faults = {
        name: {column: counts[column] for column in FAULTS if counts[column]}
        for name, counts in figures.items()
    }
    assert not any(faults.values()), table(figures)
    assert all(counts["tried"] == EACH for counts in figures.values())
    assert sum(counts["refused"] for counts in figures.values()) > len(DOORS)


def test_a_fault_that_is_kept_comes_back(tmp_path: Path) -> None:
    for number in range(3):
        _kept(tmp_path, DOORS[number], bytes([number]), "hang", Outcome(kind="hang", told="slow"))
    found = list(kept_faults(tmp_path))
    assert found == [(DOORS[number], bytes([number])) for number in range(3)]
    _kept(tmp_path, DOORS[0], bytes(MAX_KEPT_BYTES + 1), "hang", Outcome(kind="hang", told=""))
    assert len(list(kept_faults(tmp_path))) == 3


def test_kept_faults_stay_mended(folder: Path) -> None:
    """Of this project, as far as there are any."""
    assert len(list(kept_faults())) == len(list(KEPT.glob("*.bin")))
    for door, content in kept_faults():
        path = folder / door.file
        sound = path.read_bytes()
        wanted = tried(door.read, path).content
        try:
            path.write_bytes(content)
            column, found = outcome_of(door, path, wanted)
        finally:
            path.write_bytes(sound)
        assert column not in FAULTS, (door.name, found)


def test_the_seed_fixes_every_change() -> None:
    content = bytes(range(256)) + b'{"a": [1, 22]}'
    assert mutated(content, "1/2") == mutated(content, "1/2")
    assert len({mutated(content, f"1/{number}") for number in range(50)}) > 40
    assert len(set(KINDS)) > 10


def test_a_child_that_misbehaves_is_told_as_what_it_did(tmp_path: Path) -> None:
    """Without this the figures could not be believed."""

    def crash(_: Path) -> str:
        raise KeyError("a bug")

    def refuse(_: Path) -> str:
        raise ValueError("damaged")

    def swallow(_: Path) -> str:
        return str(len(bytearray(4 << 30)))

    def grow(_: Path) -> str:
        block = mmap.mmap(-1, 700 << 20)  # fresh pages, whatever the heap still holds
        for _mebibyte in range(700):
            block.write(bytes(1 << 20))
        return str(len(block))

    for door, kind in ((crash, "traceback"), (refuse, "refused"), (swallow, "memory"),
                       (grow, "memory"), (lambda path: path.name, "accepted")):  # fmt: skip
        assert tried(door, tmp_path / "x").kind == kind
