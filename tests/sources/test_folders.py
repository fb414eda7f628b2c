"""Folders of image files."""

import os
from pathlib import Path

import pytest
from source_cases import Write, labels_of, names_of, opened

from crate_mae.sources.address import open_source
from crate_mae.sources.images import UnreadableImage


def test_class_folders_give_labels(write: Write, tmp_path: Path) -> None:
    for name in ("b/2.png", "b/deep/1.PNG", "a/x.jpg.png", "b/notes.txt", ".hidden/no.png"):
        write(name)
    write("a/.hidden.png")
    source = opened(f"imagefolder:{tmp_path}")
    assert names_of(source) == ["a/x.jpg.png", "b/2.png", "b/deep/1.PNG"]
    assert source.class_names == ("a", "b")
    assert labels_of(source) == [0, 1, 1]
    assert source.split is None
    sample = source.load(1)
    assert (sample.name, sample.label, sample.image.shape) == ("b/2.png", 1, (3, 4, 5))
    assert (source.facts(1).height, source.facts(1).width) == (4, 5)


def test_a_flat_folder_is_unlabelled(write: Write, tmp_path: Path) -> None:
    write("1.png")
    write("sub/2.png")
    source = opened(f"imagefolder:{tmp_path}")
    assert source.class_names is None
    assert labels_of(source) == [None, None]
    assert source.load(0).label is None
    with pytest.raises(ValueError, match="not divided into splits"):
        open_source(f"imagefolder:{tmp_path}", split="val")


def test_an_empty_folder_and_a_file_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image files"):
        open_source(f"imagefolder:{tmp_path}")
    with pytest.raises(ValueError, match="is a file"):
        open_source(f"imagefolder:{write('1.png')}")


def test_split_folders_are_chosen_by_name(write: Write, tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "Valid/a/3.png", "Valid/b/4.png"):
        write(name)
    address = f"imagefolder:{tmp_path}"
    train = opened(address)
    assert (train.split, train.class_names) == ("train", ("a", "b"))
    assert names_of(train) == ["train/a/1.png", "train/b/2.png"]
    for split in ("val", "validation", "valid"):
        source = opened(address, split=split)
        assert (source.split, labels_of(source)) == ("Valid", [0, 1])
    with pytest.raises(ValueError, match="no split 'test': its splits are Valid, train"):
        open_source(address, split="test")


def test_flat_images_in_split_folders_are_unlabelled(write: Write, tmp_path: Path) -> None:
    write("test/1.png")
    source = opened(f"imagefolder:{tmp_path}", split="test")
    assert source.class_names is None
    with pytest.raises(ValueError, match="has the split test and none called train: name"):
        open_source(f"imagefolder:{tmp_path}")


def test_a_class_may_be_called_train(write: Write, tmp_path: Path) -> None:
    for name in ("bus/1.png", "car/1.png", "train/1.png"):
        write(name)
    assert opened(f"imagefolder:{tmp_path}").class_names == ("bus", "car", "train")


def test_links_to_files_are_followed_and_links_to_folders_are_not(
    write: Write, tmp_path: Path
) -> None:
    elsewhere = write("outside/other.png", (6, 7))
    write("outside/notes.txt", b"not listed")
    write("root/a/1.png")
    root = tmp_path / "root"
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "escape").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "a" / "link.png").symlink_to(elsewhere)
    (root / "a" / "notes.txt").symlink_to(tmp_path / "outside" / "notes.txt")
    (root / "a" / "same.png").symlink_to(root / "a" / "1.png")
    (root / "a" / "dangling.png").symlink_to(root / "none.png")
    source = opened(f"imagefolder:{root}")
    assert names_of(source) == ["a/1.png", "a/link.png", "a/same.png"]
    assert source.load(1).image.shape == (3, 6, 7)


def test_links_to_folders_alone_are_explained(write: Write, tmp_path: Path) -> None:
    write("outside/1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(ValueError, match=r"1 links to folders, which are not followed .*: a$"):
        open_source(f"imagefolder:{tmp_path / 'root'}")


def test_what_is_no_regular_file_is_left_out(write: Write, tmp_path: Path) -> None:
    write("a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    assert names_of(opened(f"imagefolder:{tmp_path}")) == ["a.png"]


def test_a_broken_file_is_reported_by_its_name(write: Write, tmp_path: Path) -> None:
    write("a/1.png", b"no image")
    with pytest.raises(UnreadableImage, match=r"a/1\.png: not an image"):
        opened(f"imagefolder:{tmp_path}").load(0)


def test_folder_fingerprints_follow_the_content_not_the_place(write: Write, tmp_path: Path) -> None:
    def fingerprint(root: str) -> str:
        return opened(f"imagefolder:{tmp_path / root}").fingerprint()

    for root in ("here", "there"):
        write(f"{root}/a/1.png")
        write(f"{root}/b/2.png")
    original = fingerprint("here")
    assert original == fingerprint("there")
    write("there/b/2.png", (9, 9))  # resized
    seen = {original, fingerprint("there")}
    write("there/b/3.png")  # added
    seen.add(fingerprint("there"))
    (tmp_path / "there/b/3.png").rename(tmp_path / "there/b/4.png")  # renamed
    seen.add(fingerprint("there"))
    (tmp_path / "there/a").rename(tmp_path / "there/c")  # another class
    seen.add(fingerprint("there"))
    assert len(seen) == 5
