"""Tar shards: the order, its division among workers, and what is refused."""

import io
import json
import pickle
import shutil
import sys
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from source_cases import Encode

import crate_mae.sources.shards as shard_module
import crate_mae.sources.webdataset as streams
from crate_mae.sources.address import open_source
from crate_mae.sources.base import Share
from crate_mae.sources.describe import describe_source
from crate_mae.sources.images import Sample, UnreadableImage, decode_image
from crate_mae.sources.splits import match_split, select_shards
from crate_mae.sources.webdataset import StreamSource, decode_record

pytest.importorskip("webdataset")


def _write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path, encode: Encode) -> Path:
    """Six shards of five labelled images each."""
    for shard in range(6):
        members = {}
        for place in range(5):
            number = 5 * shard + place
            members[f"{number:04d}.png"] = encode((3, 4), seed=number)
            members[f"{number:04d}.cls"] = str(number % 3).encode()
        _write_tar(tmp_path / "shards" / f"{shard:02d}.tar", members)
    return tmp_path / "shards"


def _read(source: StreamSource, skip: int = 0, **share: Any) -> list[Sample | UnreadableImage]:
    return list(source.samples(Share(**{"shuffle": True, **share}), skip=skip))


def _names(entries: list[Sample | UnreadableImage]) -> list[str]:
    return [entry.name for entry in entries]


def test_shards_are_read_in_order_without_shuffling(shards: Path, encode: Encode) -> None:
    source = open_source(f"wds:{shards}")
    assert isinstance(source, StreamSource)
    assert (len(source), source.split, source.class_names) == (30, None, None)
    entries = _read(source, shuffle=False)
    assert _names(entries) == [f"{n // 5:02d}.tar/{n:04d}" for n in range(30)]
    for number, entry in enumerate(entries):
        assert isinstance(entry, Sample)
        assert entry.label == number % 3
        assert torch.equal(entry.image, decode_image(encode((3, 4), seed=number), "x"))


def test_the_order_follows_from_seed_and_epoch(shards: Path) -> None:
    first = _names(_read(StreamSource(str(shards))))
    assert first == _names(_read(StreamSource(str(shards))))
    assert first != sorted(first)
    others = [_names(_read(StreamSource(str(shards)), **o)) for o in ({"epoch": 1}, {"seed": 1})]
    assert all(first != other and sorted(first) == sorted(other) for other in others)


def test_samples_of_different_shards_are_mixed(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def jumps(names: list[str]) -> int:
        return sum(a[:2] != b[:2] for a, b in pairwise(names))

    source = StreamSource(str(shards))
    assert jumps(_names(_read(source))) > 10
    monkeypatch.setattr(streams, "SHUFFLE_BUFFER", 1)
    assert jumps(_names(_read(source))) == 5  # one buffered record: whole shards follow each other


@settings(max_examples=25)
@given(
    world_size=st.integers(1, 3),
    num_workers=st.integers(1, 2),
    shuffle=st.booleans(),
    epoch=st.integers(0, 5),
)
def test_every_sample_goes_to_exactly_one_worker(
    tiny_stream: StreamSource, world_size: int, num_workers: int, shuffle: bool, epoch: int
) -> None:
    shares = [
        [
            record.name
            for record in tiny_stream.records(
                Share(
                    epoch=epoch,
                    shuffle=shuffle,
                    rank=rank,
                    world_size=world_size,
                    worker=worker,
                    num_workers=num_workers,
                )
            )
        ]
        for rank in range(world_size)
        for worker in range(num_workers)
    ]
    everything = [name for share in shares for name in share]
    assert len(everything) == len(set(everything)) == len(tiny_stream) == 14


@pytest.fixture(scope="module")
def tiny_stream(tmp_path_factory: pytest.TempPathFactory) -> StreamSource:
    folder = tmp_path_factory.mktemp("tiny")
    for shard in range(7):
        members = {f"{shard}{place}.jpg": b"undecoded" for place in range(2)}
        _write_tar(folder / f"{shard}.tar", members)
    return StreamSource(str(folder))


def test_left_over_shards_spread_over_the_processes(tiny_stream: StreamSource) -> None:
    counts = {
        (rank, worker): len(
            list(
                tiny_stream.records(
                    Share(shuffle=True, rank=rank, world_size=2, worker=worker, num_workers=3)
                )
            )
        )
        for rank in range(2)
        for worker in range(3)
    }
    per_rank = [sum(counts[rank, worker] for worker in range(3)) for rank in range(2)]
    assert sorted(per_rank) == [6, 8]


@pytest.mark.parametrize("skip", [0, 1, 13, 30, 99])
def test_skip_goes_on_where_a_run_stopped(
    shards: Path, skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = StreamSource(str(shards))
    whole = _names(_read(source))
    decoded: list[str] = []

    def count(record: streams.Record) -> Sample | UnreadableImage:
        decoded.append(record.name)
        return decode_record(record)

    monkeypatch.setattr(streams, "decode_record", count)
    assert _names(_read(source, skip=skip)) == whole[skip:]
    assert decoded == whole[skip:]


def test_too_few_shards_and_impossible_ranks_are_refused(shards: Path) -> None:
    source = StreamSource(str(shards))
    with pytest.raises(ValueError, match="6 shards, too few for 4 processes x 2 workers"):
        _read(source, world_size=4, num_workers=2)
    for wrong in ({"rank": 1}, {"worker": 1}, {"rank": -1}):
        with pytest.raises(ValueError, match="do not exist"):
            _read(source, **wrong)


def test_broken_images_and_labels_are_values_not_errors(tmp_path: Path, encode: Encode) -> None:
    image = encode((3, 4))
    members = {
        "a.jpg": b"no image",
        "b.png": image,
        "b.cls": b"cat",
        "c.png": image,
        "c.cls": b" 7\n",
        "d.png": image,
        "d.cls": b"-1",
        "e.png": image,
        "e.json": json.dumps({"label": 5, "text": "x"}).encode(),
        "f.png": image,
        "f.json": b'{"label": ',
        "g.png": image,
        "g.json": b'{"label": "cat"}',
        "h.png": image,
        "h.json": b"[" * 100_000,
        "i.png": image,
        "i.cls": b"999999999",
    }
    entries = _read(StreamSource(str(_write_tar(tmp_path / "x.tar", members))), shuffle=False)
    got = {
        entry.name.removeprefix("x.tar/"): entry.reason
        if isinstance(entry, UnreadableImage)
        else entry.label
        for entry in entries
    }
    assert {key: got[key] for key in "cdeg"} == {"c": 7, "d": None, "e": 5, "g": None}
    assert "not an image" in str(got["a"])
    assert {key: got[key] for key in "bfhi"} == dict.fromkeys("bfhi")  # the images stay
    report = describe_source(StreamSource(str(tmp_path / "x.tar")))
    assert report.classes == {"5": 1, "7": 1, "cat": 2}
    told = " ".join(map(str, report.passed_over))
    assert "not valid JSON" in told
    assert "999999999 is above" in told


def test_only_images_and_labels_are_read(
    tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    bomb = pickle.dumps(Bomb())
    members = {
        "../../escape.png": encode((3, 4)),
        "a.pkl": bomb,
        "a.pyd": bomb,
        "a.left.png": encode((5, 6)),
        "a.png": encode((3, 4)),
        "a.npy": bomb,
        "b.txt": b"no image here",
        "c.cls": b"1",
        "__meta__/d.png": encode((3, 4)),
        ".hidden.png": encode((3, 4)),
        "e.JPG": encode((3, 4), "JPEG"),
    }
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("something was unpickled"))
    source = StreamSource(str(_write_tar(tmp_path / "in" / "x.tar", members)))
    entries = _read(source, shuffle=False)
    assert _names(entries) == ["x.tar/../../escape", "x.tar/a", "x.tar/e"]
    assert len(source) == 3
    assert all(isinstance(e, Sample) and e.image.shape == (3, 3, 4) for e in entries)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "x.tar"]


def test_globs_braces_and_folders_name_shards(shards: Path, monkeypatch: Any) -> None:
    assert len(StreamSource(f"{shards}/*.tar").shards) == 6
    assert len(StreamSource(f"{shards}/{{01..03}}.tar").shards) == 3
    assert len(StreamSource(f"{shards}/0{{0,5}}.tar").shards) == 2
    monkeypatch.chdir(shards)
    relative = StreamSource("{00..05}.tar")
    assert _names(_read(relative)) == _names(_read(StreamSource(str(shards))))
    with pytest.raises(FileNotFoundError, match=r"06\.tar"):
        StreamSource(f"{shards}/{{00..06}}.tar")
    with pytest.raises(FileNotFoundError, match="no shard"):
        StreamSource(f"{shards}/*.tgz")
    (shards / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.tar"):
        StreamSource(str(shards / "empty"))
    with pytest.raises(ValueError, match="more than 1000000"):
        StreamSource("x{0..99999999}.tar")


@pytest.mark.parametrize(
    "address",
    ["pipe:touch ran", " PIPE:touch ran", "http://x/a.tar", "s3://b/a.tar", "{pipe:a,pipe:b}.tar"],
)
def test_commands_and_the_network_are_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="only local tar files are read"):
        open_source(f"wds:{address}")
    assert not list(tmp_path.iterdir())


def test_a_colon_in_a_file_name_is_possible(
    tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_tar(tmp_path / "ab:c.tar", {"a.png": encode((3, 4))})
    monkeypatch.chdir(tmp_path)
    assert len(_read(StreamSource("./ab:c.tar"))) == 1


def test_damaged_shards_are_named(tmp_path: Path, encode: Encode) -> None:
    members = {f"{n}.png": encode((30, 40)) for n in range(5)}
    whole = _write_tar(tmp_path / "whole.tar", members).read_bytes()
    cases = {
        "text.tar": b"this is not a tar file" * 100,
        "cut.tar": whole[: len(whole) // 2],
        "empty.tar": b"",
        "zipped.tar": _write_tar(tmp_path / "z" / "x.tar", members, "w:gz").read_bytes()[:-30],
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        source = StreamSource(str(tmp_path / name))
        for use in (source.__len__, lambda source=source: _read(source)):
            with pytest.raises(ValueError, match=f"{name} is not a complete tar file"):
                use()


def test_dangerous_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(ValueError, match=r"a\.png twice"):
        _read(StreamSource(str(path)))
    _write_tar(path, {"a.png": b"x" * 2000})
    monkeypatch.setattr(shard_module, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(ValueError, match=r"a\.png of 2000 bytes: refused"):
        len(StreamSource(str(path)))


def test_links_in_a_shard_are_left_out(tmp_path: Path, encode: Encode) -> None:
    path = _write_tar(tmp_path / "x.tar", {"a.png": encode((3, 4))})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = StreamSource(str(path))
    assert (len(source), _names(_read(source))) == (1, ["x.tar/a"])


def test_the_fingerprint_follows_the_shards_not_their_place(shards: Path, tmp_path: Path) -> None:
    original = StreamSource(str(shards)).fingerprint()
    moved = tmp_path / "elsewhere"
    shutil.copytree(shards, moved)
    assert StreamSource(str(moved)).fingerprint() == original
    (moved / "00.tar").rename(moved / "77.tar")
    renamed = StreamSource(str(moved)).fingerprint()
    (moved / "77.tar").unlink()
    assert len({original, renamed, StreamSource(str(moved)).fingerprint()}) == 3


def test_splits_come_from_the_shard_names(tmp_path: Path) -> None:
    for name in ("in-train-0", "in-train-1", "in-val-0"):
        _write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b"x"})
    assert (StreamSource(str(tmp_path)).split, len(StreamSource(str(tmp_path)).shards)) == (
        "train",
        2,
    )
    val = open_source(f"wds:{tmp_path}", split="validation")
    assert (val.split, val.address) == ("val", f"wds:{tmp_path}")
    with pytest.raises(ValueError, match="its splits are train, val"):
        open_source(f"wds:{tmp_path}", split="test")
    with pytest.raises(ValueError, match="without a limit"):
        open_source(f"wds:{tmp_path}", limit=3)


def test_split_words_are_whole_words() -> None:
    files = [Path("trainee.tar"), Path("contest.tar"), Path("evaluator.tar")]
    assert select_shards(files, Path(), None, "x")[:2] == (files, None)
    assert match_split("Val", ["valid"], "x") == "valid"
    with pytest.raises(ValueError, match="not divided into splits"):
        match_split("test", [], "x")


def test_a_stream_can_be_sent_to_another_process(shards: Path) -> None:
    source = StreamSource(str(shards))
    assert _names(_read(pickle.loads(pickle.dumps(source)))) == _names(_read(source))


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r"crate-mae\[wds\]"):
        open_source("wds:x.tar")


def test_reading_is_lazy(shards: Path) -> None:
    (shards / "05.tar").write_bytes(b"damaged" * 200)
    entries: Iterator[Sample | UnreadableImage] = StreamSource(str(shards)).samples()
    assert next(entries).name == "00.tar/0000"
    with pytest.raises(ValueError, match=r"05\.tar is not"):
        list(entries)
