"""Files come whole or not at all, with the mode of every other file, and errors name them."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from processes import python
from safetensors.torch import save_file

from crate_mae.common.files import (
    NotWrittenError,
    check_new_folder,
    replacing,
    replacing_tree,
    user_path,
    write_atomically,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _half(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError("it died")


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="died"), replacing(target) as fresh:
        _half(fresh)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_gives_the_mode_whatever_writes(tmp_path: Path, umask: int) -> None:
    """safetensors writes files that only their owner can read."""
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.safetensors") as fresh:
            save_file({"x": torch.zeros(1)}, fresh)
        with replacing_tree(tmp_path / "folder") as folder:
            save_file({"x": torch.zeros(1)}, folder / "b.safetensors")
        plain = tmp_path / "plain"
        plain.write_text("")
        (tmp_path / "plain folder").mkdir()
    finally:
        os.umask(before)

    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("a.safetensors") == mode("plain") == 0o666 & ~umask
    assert mode("folder/b.safetensors") == mode("plain")
    assert mode("folder") == mode("plain folder")


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    for content in ("one", "two"):
        with replacing_tree(folder) as fresh:
            (fresh / "file").write_text(content)
        assert (folder / "file").read_text() == content
    with pytest.raises(RuntimeError, match="died"), replacing_tree(folder) as fresh:
        _half(fresh / "file")
    assert (folder / "file").read_text() == "two"
    assert names(tmp_path) == ["weights"]


LIMITED = """
import resource, sys, torch
from pathlib import Path
from crate_mae.common.files import replacing, replacing_tree, write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
target = Path(sys.argv[1]) / "target"
def torch_file(path):
    with replacing(path) as fresh:
        torch.save(torch.zeros(5000), fresh)
def arrow(path):
    import pyarrow, pyarrow.parquet
    with replacing(path) as fresh:
        pyarrow.parquet.write_table(pyarrow.table({"a": list(range(5000))}), fresh)
def tree(path):
    with replacing_tree(path) as fresh:
        (fresh / "a").write_bytes(bytes(5000))
for write in (lambda path: write_atomically(path, "x" * 5000), torch_file, arrow, tree):
    try:
        write(target)
    except OSError as error:
        print(type(error).__name__, error)
print(sorted(path.name for path in target.parent.iterdir()))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limits on files here")
def test_a_full_disk_is_told_with_path_and_remedy_whatever_writes(tmp_path: Path) -> None:
    """Text, PyTorch, arrow and folders; the limit on file sizes stands for a disk that is full."""
    done = python(LIMITED.replace("sys.argv[1]", repr(str(tmp_path))))
    *errors, left = done.stdout.splitlines()
    assert len(errors) == 4, done.stderr
    for line in errors:
        assert line.startswith("NotWrittenError")
        assert f"{tmp_path}/target could not be written" in line
        assert "name another place" in line
    assert left == "[]"


def test_words_of_other_languages_for_a_full_disk_are_understood() -> None:
    told = "Error while serializing: I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(NotWrittenError, match=r"/small/f could not be written .*disk is full"),
        writing("/small/f"),
    ):
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="something else"), writing("/small/f"):
        raise RuntimeError("something else")
    with pytest.raises(OSError, match="disk is full") as caught, writing("/small/f"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC


def test_a_pipe_whose_reader_has_gone_is_no_full_disk() -> None:
    with pytest.raises(BrokenPipeError), writing("x"):
        raise BrokenPipeError


def test_home_is_meant_where_the_shell_left_the_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs/x") == tmp_path / "runs" / "x"
    assert check_new_folder("~/runs/x") == tmp_path / "runs" / "x"
    assert user_path("a~b") == Path("a~b")


def test_text_is_replaced_in_one_step(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "a.txt", "text")
    assert (tmp_path / "new" / "a.txt").read_text() == "text"
    assert names(tmp_path / "new") == ["a.txt"]
