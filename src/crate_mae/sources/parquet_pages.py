"""What the first page of a parquet column claims: the one thing that pyarrow does not tell.

Page headers are Thrift structs in the compact protocol; the first three fields of all of them are
type, unpacked and packed size, as 32-bit integers
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
"""

import sys
from collections.abc import Iterator
from typing import IO, Any

_NEXT_FIELD_IS_INT32 = 0x15
_DICTIONARY_PAGE = 2
_LONGEST = 18
"""Bytes of three fields: a mark and at most five bytes of a number each."""


def dictionary_bytes(chunk: Any, file: IO[bytes]) -> int:
    """The bytes that the dictionary of a column chunk unpacks to: no value of it is larger.

    A reader accepts one dictionary for a chunk, so a first page that is one is the only one. Where
    the chunk begins with another page this tells nothing, and the answer is `sys.maxsize`.
    """
    # Readers begin at the dictionary only where it stands before the data.
    start = chunk.dictionary_page_offset
    if start is None or not 0 < start < chunk.data_page_offset:
        return sys.maxsize
    file.seek(start)
    kind, unpacked, packed = _first_numbers(file.read(_LONGEST))
    # An unpacked size means nothing where the pages are not packed.
    return max(unpacked, packed) if kind == _DICTIONARY_PAGE else sys.maxsize


def _first_numbers(head: bytes) -> tuple[int, int, int]:
    """(Type, unpacked size, packed size) of a page header; a type of -1 where it is none."""
    content = iter(head)
    numbers = []
    for _ in range(3):
        if next(content, None) != _NEXT_FIELD_IS_INT32:
            return -1, 0, 0
        numbers.append(_number(content))
    return numbers[0], numbers[1], numbers[2]


def _number(content: Iterator[int]) -> int:
    """A variable-length number of seven bits a byte, low ones first, its sign in the lowest bit."""
    value, shift = 0, 0
    for byte in content:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return (value >> 1) ^ -(value & 1)
