"""Files that vanish, links to themselves and closed folders: passed over, counted, named."""

import os
from pathlib import Path

import pytest
from source_cases import Write

from crate_mae.sources.address import open_source
from crate_mae.sources.base import ImageSource
from crate_mae.sources.images import Sample, UnreadableImage
from crate_mae.sources.inputs import open_images


def test_a_link_to_itself_and_one_to_nowhere_are_named(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write("a/0.png")
    write("b/1.png")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    (tmp_path / "a" / "folder").symlink_to(tmp_path / "a", target_is_directory=True)
    source = open_source(f"imagefolder:{tmp_path}")
    assert isinstance(source, ImageSource)
    assert [source.name(index) for index in range(len(source))] == ["a/0.png", "b/1.png"]
    assert "a/loop.png" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_without_permission_is_named(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write("a/0.png")
    write("closed/1.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert len(open_source(f"imagefolder:{tmp_path}")) == 1
    finally:
        (tmp_path / "closed").chmod(0o755)
    assert (
        "passed over: 1 files and folders that cannot be read: closed/ (Permission denied)"
        in caplog.text
    )


def test_a_folder_that_goes_while_it_is_listed_is_named(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what root cannot read, as on a disk that fails."""
    write("a/0.png")
    write("gone/1.png")
    listed = os.scandir

    def failing(path: Path) -> object:
        if path.name == "gone":
            raise OSError(5, "Input/output error", str(path))
        return listed(path)

    monkeypatch.setattr("crate_mae.sources.folders.os.scandir", failing)
    assert len(open_source(f"imagefolder:{tmp_path}")) == 1
    assert (
        "passed over: 1 files and folders that cannot be read: gone/ (Input/output error)"
        in caplog.text
    )


def test_a_file_that_vanishes_after_it_was_listed_is_unreadable(
    tmp_path: Path, write: Write
) -> None:
    write("a/0.png")
    gone = write("b/1.png")
    source = open_source(f"imagefolder:{tmp_path}")
    assert isinstance(source, ImageSource)
    before = source.fingerprint()
    files = open_images([str(tmp_path)])
    gone.unlink()
    for opened in (source, files):
        entries = list(opened.samples())
        assert isinstance(entries[0], Sample)
        assert isinstance(entries[1], UnreadableImage)
        assert "1.png" in str(entries[1])
        with pytest.raises(UnreadableImage):
            opened.facts(1)
        opened.fingerprint()
    assert source.fingerprint() != before
