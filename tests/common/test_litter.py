"""What killed processes leave is swept up: only ours, only stale."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE

from crate_mae.common import litter
from crate_mae.common.files import replacing, replacing_tree
from crate_mae.common.litter import OLD, beside, is_litter, sweep, sweep_below

HANGING = """
import sys, time
from pathlib import Path
from crate_mae.common.files import replacing, replacing_tree
with replacing(Path(sys.argv[1])) as file, replacing_tree(Path(sys.argv[2])) as folder:
    file.write_text("half")
    (folder / "part").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def killed_while_writing(file: Path, folder: Path) -> None:
    """Leave behind what a process that was killed leaves."""
    writer = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(file), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait(PATIENCE)
    writer.stdout.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_next_writer_sweeps_up_what_a_killed_one_left(tmp_path: Path) -> None:
    file, folder = tmp_path / "table.csv", tmp_path / "weights"
    killed_while_writing(file, folder)
    left = names(tmp_path)
    assert len(left) == 2
    assert all(map(is_litter, left))
    with replacing(file) as fresh:
        fresh.write_text("whole")
    with replacing_tree(folder) as fresh:
        (fresh / "part").write_text("whole")
    assert names(tmp_path) == {"table.csv", "weights"}


def test_files_of_others_and_of_living_processes_stay(tmp_path: Path) -> None:
    target = tmp_path / "a"
    mine = {
        beside(target).name,  # this process lives
        f".a.{'0' * 8}.1.partial",  # of another host, fresh
        ".a.partial", ".a.tmp", "a.1234.partial", ".a.zzzzzzzz.12.partial", ".b.12345.partial",
    }  # fmt: skip
    for name in mine:
        (tmp_path / name).write_text("")
    assert sweep(target) == []
    assert sweep_below(tmp_path) == []
    assert names(tmp_path) == mine


def test_litter_of_another_host_goes_after_a_day(tmp_path: Path) -> None:
    old = tmp_path / f".a.{'0' * 8}.1.partial"
    old.write_text("")
    os.utime(old, (1, 1))
    assert sweep(tmp_path / "a") == [old]


def test_where_processes_cannot_be_asked_own_litter_goes_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_while_writing(tmp_path / "x", tmp_path / "y")
    left = names(tmp_path)
    monkeypatch.setattr(litter, "ASKS", False)
    monkeypatch.delattr(os, "kill")  # on Windows it would interrupt the process that it asks
    assert sweep(tmp_path / "x") == []
    assert sweep_below(tmp_path) == []
    assert names(tmp_path) == left
    for name in left:
        os.utime(tmp_path / name, (1, 1))
    assert {path.name for path in sweep_below(tmp_path)} == left


def test_an_old_folder_whose_successor_never_came_is_moved_back(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    killed_while_writing(tmp_path / "x", tmp_path / "y")
    dead = next(name for name in names(tmp_path) if name.startswith(".y")).split(".")[-2]
    aside = tmp_path / beside(folder, OLD).name.replace(f".{os.getpid()}.", f".{dead}.")
    aside.mkdir()
    (aside / "model").write_text("the only copy")
    assert aside not in sweep_below(tmp_path)
    assert (folder / "model").read_text() == "the only copy"


def test_long_names_leave_room_for_more(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 120)
    assert len(os.fsencode(beside(target).name)) < 255
    with replacing(target) as fresh:
        fresh.write_text("x")
    assert names(tmp_path) == {target.name}
