"""What a file is that is not what was hoped for, told from its first bytes, and what to do."""

import re
from pathlib import Path

HEAD_BYTES = 512
"""How many first bytes tell."""

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself: run git annex get"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL, which is not read: convert it to PNG or JPEG"),
    (b"\xff\x0a", "JPEG XL, which is not read: convert it to PNG or JPEG"),
    (b"\x89HDF\r\n\x1a\n", "HDF5: save its images as .npy"),
    (b"\x93NUMPY", "a NumPy array: open its file or folder with npy:"),
    (b"PAR1", "parquet: open it with parquet:"),
    (b"%PDF", "a PDF document: save its pages as images"),
    (b"%!PS", "PostScript, which is not read: save it as PNG"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"\x1f\x8b", "gzip-compressed: unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it"),
    (b"BZh", "bzip2-compressed: unpack it"),
    (b"\xfd7zXZ\x00", "xz-compressed: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"FUJIFILMCCD-RAW", "a raw photograph: develop it to JPEG, PNG or TIFF"),
    (b"\x5c\x01\x00\x00", "NIfTI: save its slices as .npy"),
    (b"\x00\x00\x01\xba", "a video: save its frames as images"),
    (b"\x1a\x45\xdf\xa3", "a video: save its frames as images"),
    (b"SQLite format 3", "an SQLite database"),
    (b"ARROW1", "an Arrow file: write it as parquet"),
    (b"FEA1", "a Feather file: write it as parquet"),
    (b"ORC", "ORC: write it as parquet"),
)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}


def file_kind(source: bytes | Path) -> str | None:
    """What a file is (its first bytes or its path), with a remedy; None where nothing is known."""
    head = source if isinstance(source, bytes) else _head(source)
    head = head[:HEAD_BYTES]
    if head.startswith(b"PK\x03\x04") and b"[Content_Types].xml" in head:
        return "an Office document: save its table as CSV UTF-8"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        brand = _BRANDS.get(head[8:12])
        if brand is not None:
            return f"{brand}, which is not read: convert it to JPEG or PNG"
        return "a video or another file of the MP4 family: save its frames as images"
    if head[128:132] == b"DICM":
        return "DICOM: save its pixels as .npy or 16-bit PNG"
    if head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return "TIFF"
    return _text_kind(head)


def _text_kind(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if re.match(rb"<!doctype html|<html|<head|<script", text):
        return (
            "a web page, not the file itself: the download was answered by a page (a log-in, a"
            " warning, an error); fetch it again"
        )
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "SVG, which is not read: save it as PNG"
    if text.startswith(b"<?xml"):
        return "XML, perhaps a server's error in place of the file: fetch it again"
    if text.startswith((b"{", b"[")) and _is_text(head):
        return "JSON, perhaps a server's error in place of the file: fetch it again"
    return "a text file" if text and _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        words = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # a letter may be cut in two at the end
            return False
        words = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter in "\t\r\n" for letter in words)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
