"""Arrays whose headers are damaged or claim too much: refused or passed over, by name."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from crate_mae.sources.address import open_source
from crate_mae.sources.images import Sample, UnreadableImage

STACK = np.arange(4 * 8 * 9 * 3, dtype=np.uint8).reshape(4, 8, 9, 3)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def headers() -> list[bytes]:
    """One sound file for each character of the header that is left out."""
    sound = npy(STACK[0])
    length = struct.unpack("<H", sound[8:10])[0]
    return [sound[:place] + sound[place + 1 :] for place in range(10, 10 + length)]


def test_whatever_is_missing_in_a_header_the_image_is_passed_over(tmp_path: Path) -> None:
    """A lost bracket makes numpy's parser raise what no list of errors had."""
    np.save(tmp_path / "a.npy", STACK[0])
    damaged = tmp_path / "b.npy"
    for content in headers():
        damaged.write_bytes(content)
        first, second = open_source(f"npy:{tmp_path}").samples()
        assert isinstance(first, Sample)
        # Left-out padding moves the pixels by a byte, which nothing tells.
        assert isinstance(second, UnreadableImage | Sample)
    damaged.write_bytes(npy(STACK[0]).replace(b"(8, 9, 3)", b"(8, 9, 3 "))
    assert isinstance(list(open_source(f"npy:{tmp_path}").samples())[1], UnreadableImage)


def test_a_stack_with_a_damaged_header_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "stack.npy"
    path.write_bytes(npy(STACK).replace(b"(4, 8, 9, 3)", b"(4, 8, 9, 3 "))
    with pytest.raises(ValueError, match=r"stack\.npy"):
        open_source(f"npy:{path}")


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


def claiming(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    """A header that claims a shape, and some content."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return header.getvalue() + content


@pytest.mark.parametrize(
    "member",
    [
        claiming((1 << 20, 64, 64)),
        claiming((1 << 62, 2, 2)),
        claiming((2, 4, 4), bytes(31)),
        claiming((2, 4, 4), bytes(33)),
        b"",
        b"\x93NUMPY\x03\x00" + bytes(100),
    ],
    ids=["gigabytes", "exabytes", "less", "more", "nothing", "version"],
)
def test_a_member_that_claims_what_it_does_not_hold_is_refused(
    tmp_path: Path, member: bytes
) -> None:
    path = archive(tmp_path / "x.npz", {"images.npy": member})
    with pytest.raises(ValueError, match=r"x\.npz"):
        open_source(f"npy:{path}")


def test_an_archive_that_explodes_is_refused_unread(tmp_path: Path) -> None:
    """384 MiB of zeros in 400 KiB."""
    path = tmp_path / "x.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made,
        made.open("images.npy", "w", force_zip64=True) as member,
    ):
        member.write(claiming((384, 1024, 1024)))
        for _ in range(384):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match="grow from"):
        open_source(f"npy:{path}")


def test_every_flipped_bit_of_an_archive_is_told_or_changes_nothing(tmp_path: Path) -> None:
    images, labels = STACK[:2, :4, :5, :1], np.array([0, 1])
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = archive(
            tmp_path / "x.npz", {"images.npy": npy(images), "labels.npy": npy(labels)}, method
        )
        content = path.read_bytes()
        for bit in range(0, 8 * len(content), 13):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(changed))
            try:
                source = open_source(f"npy:{path}")
            except ValueError:
                continue
            for index, sample in enumerate(source.samples()):
                assert isinstance(sample, Sample)
                assert np.array_equal(sample.image.numpy(), np.moveaxis(images[index], -1, 0))
