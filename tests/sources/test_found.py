"""Nothing is left out without a word: other kinds of files, links, parts of shards, pages."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from source_cases import Encode, Write, labels_of, names_of, opened

from crate_mae.cli import main
from crate_mae.common import budgets
from crate_mae.sources.address import open_source
from crate_mae.sources.describe import describe_source
from crate_mae.sources.found import Reading
from crate_mae.sources.images import Sample, decode_image
from crate_mae.sources.webdataset import StreamSource

pytest.importorskip("webdataset")


def _tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _told(source: StreamSource) -> str:
    len(source)
    return " | ".join(source.found.lines())


def test_files_of_other_kinds_are_counted(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("1.png", "a.HEIC", "b.heic", "c.jxl", "README"):
        write(name)
    report = describe_source(opened(f"imagefolder:{tmp_path}"))
    (entry,) = report.passed_over
    assert str(entry).startswith("4 files of other kinds (.heic 2, .jxl 1, without a suffix 1): ")
    assert "passed over: 4 files of other kinds" in caplog.text
    assert "passed over" in report.table()


def test_links_are_told_of_or_followed(write: Write, tmp_path: Path) -> None:
    write("elsewhere/dogs/2.png")
    write("root/cats/1.png")
    root = tmp_path / "root"
    (root / "dogs").symlink_to("../elsewhere/dogs", target_is_directory=True)
    (root / "cats" / "gone.png").symlink_to("nowhere.png")
    (root / "cats" / "up").symlink_to("..", target_is_directory=True)
    source = opened(f"imagefolder:{root}")
    assert source.class_names == ("cats",)
    told = {entry.what: entry.names for entry in source.found.passed_over}
    assert told["links that lead nowhere"] == ("cats/gone.png",)
    assert ("cats/up", "dogs") in told.values()
    followed = opened(f"imagefolder:{root}", reading=Reading(follow_links=True))
    assert names_of(followed) == ["cats/1.png", "dogs/2.png"]
    assert labels_of(followed) == [0, 1]  # as torchvision's ImageFolder, and the loop ends


def test_each_folder_is_read_once_under_its_own_name(write: Write, tmp_path: Path) -> None:
    for name in ("out/deep/1.png", "out/2.png", "r/real/3.png", "r/real/inner/4.png"):
        write(name)
    for name, target in (
        ("r/a-link", "r/real"), ("r/b-link", "r/a-link"), ("r/real/up", "r"),
        ("r/c-deep", "out/deep"), ("r/d-out", "out"),
    ):  # fmt: skip
        (tmp_path / name).symlink_to(tmp_path / target, target_is_directory=True)
    source = opened(f"imagefolder:{tmp_path / 'r'}", reading=Reading(follow_links=True))
    assert names_of(source) == ["c-deep/1.png", "d-out/2.png", "real/3.png", "real/inner/4.png"]
    (entry,) = source.found.passed_over
    assert entry.what == "links to folders that are read already"
    assert entry.names == ("a-link", "b-link", "d-out/deep", "real/up")


def test_data_shows_and_follows(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("elsewhere/2.png")
    write("root/cats/1.png")
    (tmp_path / "root" / "dogs").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert main(["data", f"imagefolder:{tmp_path / 'root'}"]) == 0
    shown = capsys.readouterr().out
    assert "links to folders, which are not followed (--follow-links enters them): dogs" in shown
    assert main(["data", f"imagefolder:{tmp_path / 'root'}", "--follow-links"]) == 0
    assert "dogs  1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("members", "keys"),
    [
        ("2024.01.01.jpg 2024.01.02.jpg", "2024.01.01 2024.01.02"),
        ("v1.5_1.jpg v1.5_1.cls v1.5_2.jpg", "v1.5_1 v1.5_2"),
        ("dr.smith.jpg dr.jones.jpg", "dr.smith dr.jones"),
        ("1.left.jpg 1.right.jpg 2.left.jpg 2.right.jpg", "1 2"),
        ("1.image.jpg 1.label.cls 2.image.jpg 2.label.cls", "1 2"),
        ("a.b/1.jpg a.b/1.cls", "a.b/1"),
    ],
)
def test_keys_of_samples(tmp_path: Path, encode: Encode, members: str, keys: str) -> None:
    image = encode((3, 4), "JPEG")
    path = _tar(
        tmp_path / "x.tar",
        {name: b"1" if name.endswith("cls") else image for name in members.split()},
    )
    source = StreamSource(str(path))
    with tarfile.open(path) as archive:  # tar's own listing
        images = sum(name.endswith(".jpg") for name in archive.getnames())
    unused = images - len(keys.split())
    assert len(source) == len(keys.split())
    assert [s.name.removeprefix("x.tar/") for s in source.samples()] == keys.split()
    assert (f"{unused} further images of one sample" in _told(source)) == bool(unused)


def test_labels_of_shards(tmp_path: Path, encode: Encode) -> None:
    image = encode((3, 4))

    def classes(members: dict[str, bytes], **reading: Any) -> dict[str, int] | None:
        path = _tar(tmp_path / "x.tar", members)
        return describe_source(StreamSource(str(path), reading=Reading(**reading))).classes

    words = {"1.png": image, "1.cls": b"cat", "2.png": image, "2.cls": b"dog\n"}
    assert classes(words) == {"cat": 1, "dog": 1}
    fields = {"1.image.png": image, "1.label.cls": b"7", "2.image.png": image, "2.label.cls": b"0"}
    assert classes(fields) == {"0": 1, "7": 1}
    record = {"1.png": image, "1.json": b'{"label": "a", "kind": 3}'}
    assert classes(record) == {"a": 1}
    assert classes(record, label_key="kind") == {"3": 1}
    assert classes(record, label_key="none") is None
    text = {"1.png": image, "1.txt": b"red", "2.png": image, "2.txt": b"blue"}
    assert classes(text) is None
    assert classes(text, label_key="txt") == {"blue": 1, "red": 1}
    folders = {"cat/1.png": image, "cat/2.png": image, "dog/1.png": image}
    assert classes(folders) == {"cat": 2, "dog": 1}


@pytest.mark.parametrize(
    ("suffix", "values", "classes"),
    [
        ("label", "0 1", {"0": 1, "1": 1}),
        ("label.txt", "cat dog", {"cat": 1, "dog": 1}),
        ("Class.TXT", "cat dog", {"cat": 1, "dog": 1}),
        ("cls", "\ufeff5 \ufeff7", {"5": 1, "7": 1}),
        ("caption.txt", "cat dog", None),
    ],
)
def test_members_that_are_called_a_label(
    tmp_path: Path, encode: Encode, suffix: str, values: str, classes: dict[str, int] | None
) -> None:
    members: dict[str, bytes] = {}
    for number, value in enumerate(values.split()):
        members |= {f"{number}.png": encode((3, 4)), f"{number}.{suffix}": value.encode()}
    path = _tar(tmp_path / "x.tar", members)
    assert describe_source(StreamSource(str(path))).classes == classes


def test_parts_of_records_in_shards(tmp_path: Path, encode: Encode) -> None:
    path = _tar(
        tmp_path / "x.tar",
        {"1.png": encode((3, 4)), "1.json": b'{"meta": {"kind": "a"}, "b.c": 2}'},
    )
    for key, classes in (("meta.kind", {"a": 1}), ("json.b.c", {"2": 1}), ("meta.none.x", None)):
        source = StreamSource(str(path), reading=Reading(label_key=key))
        assert describe_source(source).classes == classes


def test_links_and_members_without_a_suffix_are_told(tmp_path: Path, encode: Encode) -> None:
    path = _tar(tmp_path / "x.tar", {"1.png": encode((3, 4)), "noext": b"x"})
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            link = tarfile.TarInfo(f"link{kind.decode()}.png")
            link.type, link.linkname = kind, "1.png"
            archive.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    source = StreamSource(str(path))
    assert len(source) == 1
    assert [str(entry) for entry in source.found.passed_over] == [
        "2 links and devices inside shards: link1.png, link2.png",
        "1 members without a key or a suffix: noext",
    ]


def test_labels_that_are_away_and_other_members_are_told(tmp_path: Path, encode: Encode) -> None:
    image = encode((3, 4))
    members = {f"images/{n}.png": image for n in range(3)}
    members |= {f"labels/{n}.cls": b"1" for n in range(3)}
    told = _told(StreamSource(str(_tar(tmp_path / "x.tar", members | {"a.txt": b"x"}))))
    assert "3 labels away from their images" in told
    assert "1 members of another kind (.txt): a.txt" in told


def test_splits_inside_a_shard(tmp_path: Path, encode: Encode) -> None:
    members = {
        f"{part}/{name}/1.png": encode((3, 4)) for part in ("train", "test") for name in "ab"
    }
    path = _tar(tmp_path / "x.tar", members)
    for split in ("train", "test"):
        names = [s.name for s in StreamSource(str(path), split=split).samples()]
        assert names == [f"x.tar/{split}/{name}/1" for name in "ab"]
    assert "2 images of other splits inside shards" in _told(StreamSource(str(path)))
    report = describe_source(StreamSource(str(path)))
    assert report.classes == {"a": 1, "b": 1}
    assert (report.split, report.splits) == ("train", ("test", "train"))
    assert "train (beside it: test)" in report.table()
    with pytest.raises(ValueError, match="no split 'validation'"):
        StreamSource(str(path), split="validation")


def test_splits_that_lie_in_several_shards(tmp_path: Path, encode: Encode) -> None:
    """A tree that was cut into shards of equal size, each with what came next."""
    parts = (["test/a/1", "test/b/2"], ["test/b/3", "train/a/4"], ["train/b/5"])
    for number, names in enumerate(parts):
        _tar(tmp_path / f"{number}.tar", {f"./{name}.png": encode((3, 4)) for name in names})
    source = StreamSource(str(tmp_path))
    report = describe_source(source)
    assert [s.name[-1] for s in source.samples()] == list("45")
    assert (report.split, report.splits, report.count) == ("train", ("test", "train"), 2)
    assert report.classes == {"a": 1, "b": 1}
    test = StreamSource(str(tmp_path), split="Testing")
    assert (len(test), test.split) == (3, "test")
    assert describe_source(test).classes == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="no split 'validation': its splits are test, train"):
        StreamSource(str(tmp_path), split="validation")
    (tmp_path / "1.tar").unlink()
    (tmp_path / "2.tar").unlink()
    with pytest.raises(ValueError, match="has the split test and none called train: name"):
        len(StreamSource(str(tmp_path)))


def test_shards_of_a_split_hold_a_folder_that_is_called_so(tmp_path: Path, encode: Encode) -> None:
    for split in ("train", "val"):
        members = {f"{split}/{name}/1.png": encode((3, 4)) for name in "ab"}
        _tar(tmp_path / f"in-{split}-0.tar", members)
    source = StreamSource(str(tmp_path), split="val")
    assert (len(source), source.split) == (2, "val")
    assert describe_source(source).classes == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("members", "classes"),
    [
        ("./cat/1 ./cat/2 ./dog/3", {"cat": 2, "dog": 1}),
        ("images/cat/1 images/dog/3", {"cat": 1, "dog": 1}),
        ("cat/train/1 cat/test/2 dog/train/3", {"cat": 1, "dog": 1}),
        ("cat/1 cat/2", {"cat": 2}),
        ("images/1 images/2", None),
        ("./1 ./2", None),
        ("cat/1 2", None),
    ],
)
def test_folders_of_a_shard_that_are_classes(
    tmp_path: Path, encode: Encode, members: str, classes: dict[str, int] | None
) -> None:
    path = _tar(tmp_path / "x.tar", {f"{name}.png": encode((3, 4)) for name in members.split()})
    assert describe_source(StreamSource(str(path))).classes == classes


def test_what_lies_beside_shards_is_told(tmp_path: Path, encode: Encode) -> None:
    image = encode((3, 4))
    for name in ("train/0", "train/1", "test/0", "a", "b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _tar(tmp_path / f"{name}.tar", {"1.png": image})
    (tmp_path / "README").write_text("hello")
    (tmp_path / "c.tar").symlink_to("nowhere.tar")
    (tmp_path / "d.tar").mkdir()
    source = StreamSource(str(tmp_path))
    told = _told(source)
    assert (len(source), source.split) == (2, "train")
    assert "1 files of other kinds (without a suffix 1): README" in told
    assert "1 links that lead nowhere: c.tar" in told
    assert "2 shards outside the splits: a.tar, b.tar" in told
    assert len(StreamSource(str(tmp_path), split="test")) == 1


def test_cut_and_joined_tars_are_told_of(tmp_path: Path, encode: Encode) -> None:
    members = {f"{n}.png": encode((30, 40), seed=n) for n in range(5)}
    path = _tar(tmp_path / "x.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive]
    cases = {
        "cut between": (whole[: starts[3]], 3, "no end mark: cut off?"),
        "cut in a header": (whole[: starts[3] + 200], 3, "is damaged: cut off?"),
        "joined": (whole + whole, 5, "were tars joined by cat?"),
        "whole": (whole, 5, ""),
    }
    for data, count, words in cases.values():
        path.write_bytes(data)
        source = StreamSource(str(path))
        assert len(source) == count
        assert words in _told(source)
        assert bool(words) == bool(_told(source))


def test_gzip_shards_hold_the_same(tmp_path: Path, encode: Encode) -> None:
    members = {f"{n}.png": encode((3, 4), seed=n) for n in range(3)}
    plain = _tar(tmp_path / "x.tar", members)
    for name in ("a.tar.gz", "b.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
        source = StreamSource(str(tmp_path / name))
        assert [s.name.partition("/")[2] for s in source.samples()] == list("012")
        assert len(source) == 3
    plain.unlink()
    for kind in ("bz2", "xz"):
        _tar(tmp_path / f"c.tar.{kind}", members, f"w:{kind}")
    assert len(StreamSource(str(tmp_path))) == 12
    (tmp_path / "a.tar.gz").write_bytes((tmp_path / "b.tgz").read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not a complete tar file"):
        len(StreamSource(str(tmp_path / "a.tar.gz")))


def test_a_shard_that_unpacks_to_very_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _tar(tmp_path / "x.tar.gz", {"1.png": bytes(1 << 20)}, "w:gz")
    monkeypatch.setattr(budgets, "SMALL", 1000)
    with pytest.raises(ValueError, match=r"its members grow from"):
        len(StreamSource(str(path)))


def test_pages_frames_and_profiles_are_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), (n, 0, 0)) for n in range(3)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    renamed = profile.tobytes().replace(
        "sRGB built-in".encode("utf-16-be"), "Display P3 xy".encode("utf-16-be")
    )
    frames[0].save(tmp_path / "wide.png", icc_profile=renamed)
    frames[0].save(tmp_path / "usual.png", icc_profile=profile.tobytes())
    report = describe_source(opened(f"imagefolder:{tmp_path}"))
    told = " | ".join(map(str, report.passed_over))
    assert "1 images with 2 more pages (tiff:PATH reads all), not read: pages.tif" in told
    assert "frames after the first, not read: frames.gif" in told
    assert "1 images have colour profiles that are not applied (Display P3 xy (1))" in " ".join(
        report.notes
    )


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"<!DOCTYPE html><html>" + bytes(600), "a web page, not the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file"),
        (b"Rar!" + bytes(600), "a rar archive: unpack it"),
    ],
)
@pytest.mark.parametrize("address", ["npy:x.npy", "npy:x.npz", "parquet:x.parquet", "wds:x.tar"])
def test_what_a_file_is_that_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, head: bytes, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(address.partition(":")[2]).write_bytes(head)
    with pytest.raises(ValueError, match=words):
        len(open_source(address))


def test_labels_in_records_that_are_not_found_are_told(tmp_path: Path, encode: Encode) -> None:
    for number, (record, words) in enumerate(
        [
            ({"caption": "x", "kind": "y"}, "no key called a label in .json; choose one with"),
            ([1], "its .json member holds no record"),
        ]
    ):
        path = tmp_path / f"{number}.tar"
        _tar(path, {"1.png": encode((3, 4)), "1.json": json.dumps(record).encode()})
        (entry,) = describe_source(StreamSource(str(path))).passed_over
        assert words in entry.what
        assert entry.names == (f"{number}.tar/1",)
    reading = Reading(label_key="kind")
    report = describe_source(StreamSource(str(tmp_path / "0.tar"), reading=reading))
    assert report.classes == {"y": 1}


def test_names_that_come_again_in_a_shard_are_told(tmp_path: Path, encode: Encode) -> None:
    image = encode((3, 4))
    _tar(tmp_path / "x.tar", {f"{n}.{kind}.png": image for kind in ("rgb", "depth") for n in "12"})
    report = describe_source(StreamSource(str(tmp_path / "x.tar")))
    assert report.count == 4
    assert report.notes == ("x.tar: 2 samples come again under a name that was there before: 1, 2",)


@pytest.mark.parametrize("packing", [gzip, bz2, lzma])
def test_shards_of_several_packed_streams_hold_all(
    tmp_path: Path, encode: Encode, packing: Any
) -> None:
    """As `bgzip`, `pbzip2`, `pixz` and `cat` write them."""
    members = {f"{n}.png": encode((3, 4), seed=n) for n in range(4)}
    plain = _tar(tmp_path / "x.tar", members).read_bytes()
    path = tmp_path / "x.tar.packed"
    parts = (plain[at : at + 700] for at in range(0, len(plain), 700))
    path.write_bytes(b"".join(map(packing.compress, parts)))
    source = StreamSource(str(path))
    read = [s.image.numpy() for s in source.samples() if isinstance(s, Sample)]
    assert len(source) == len(read) == 4
    for image, data in zip(read, members.values(), strict=True):
        np.testing.assert_array_equal(image, decode_image(data, "x"))


def test_a_stray_image_and_names_that_mean_splits_in_a_shard(
    tmp_path: Path, encode: Encode
) -> None:
    data = encode((3, 4))
    stray = {"cat/1.png": data, "dog/2.png": data, "cover.png": data}
    told = _told(StreamSource(str(_tar(tmp_path / "a.tar", stray))))
    assert "a.tar: no labels: cover.png lies beside the folders of classes, not in one" in told
    named = {"train_1.png": data, "test_1.png": data}
    told = _told(StreamSource(str(_tar(tmp_path / "b.tar", named))))
    assert "names of files may tell splits (train_1.png, test_1.png)" in told


def test_labels_with_zeros_in_front_are_names(tmp_path: Path, encode: Encode) -> None:
    members: dict[str, bytes] = {}
    for number, label in enumerate((b"007", b"7", b"0", b"-1")):
        members |= {f"{number}.png": encode((3, 4)), f"{number}.cls": label}
    records = StreamSource(str(_tar(tmp_path / "x.tar", members))).records()
    assert [record.label for record in records] == ["007", 7, 0, None]


def test_folders_that_programs_leave_are_passed_over(write: Write, tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png", "@eaDir/x/3.png", "cat/@eaDir/1.png/THUMB.png"):
        write(name)
    source = opened(f"imagefolder:{tmp_path}")
    assert names_of(source) == ["cat/1.png", "dog/2.png"]
    (entry,) = source.found.passed_over
    assert str(entry) == "2 folders that programs leave: @eaDir, cat/@eaDir"


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ("a/1.png a/1_mask.png b/2.png b/2-seg.png", "2 files are called like masks or thumbnails"),
        ("a/1.png a/1_label.png b/mask.png", "1 files are called like masks"),
        ("Cat/1.png cat/2.png dog/3.png", "nearly one name are different classes: 'Cat', 'cat'"),
        ("JPEGImages/1.png SegmentationClass/1.png", "SegmentationClass beside folders of images"),
        ("a/1.png a/2_mask.png b/1.png", None),
        ("cats/1.png dogs/1.png", None),
    ],
)
def test_what_looks_like_something_else_is_told(
    write: Write, tmp_path: Path, files: str, note: str | None
) -> None:
    for name in files.split():
        write(name)
    notes = opened(f"imagefolder:{tmp_path}").found.notes
    assert notes == () if note is None else note in " ".join(notes)


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        ("PetImages/Cat/1.png PetImages/Dog/2.png", "Cat Dog"),
        ("data/archive/cat/1.png data/archive/dog/2.png", "cat dog"),
        ("images/cat/1.png images/dog/2.png", "cat dog"),
        ("cat/1.png cat/2.png", "cat"),
        ("cat/left/1.png cat/left/2.png", "cat"),
        ("cat/left/1.png cat/2.png", "cat"),
        ("cat/left/1.png dog/left/2.png", "cat dog"),
    ],
)
def test_one_folder_that_holds_all_classes(
    write: Write, tmp_path: Path, files: str, classes: str
) -> None:
    for name in files.split():
        write(name)
    source = opened(f"imagefolder:{tmp_path}")
    assert source.class_names == tuple(classes.split())
    above = files.partition("/")[0] not in classes.split()
    assert any("which holds everything" in note for note in source.found.notes) == above
