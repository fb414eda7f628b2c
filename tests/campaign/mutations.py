"""Bytes as disks, networks, editors and ill will change them; the same ones for the same seed."""

import random
from collections.abc import Callable

NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"null", b'""', b"[]", b"{}")


def flip_bit(data: bytearray, draw: random.Random) -> None:
    """Change one bit."""
    place = draw.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8


def flip_bits(data: bytearray, draw: random.Random) -> None:
    """Change up to sixteen bits."""
    for _ in range(draw.randint(2, 16)):
        flip_bit(data, draw)


def flip_early_bit(data: bytearray, draw: random.Random) -> None:
    """Change a bit among the first bytes, where headers are."""
    place = draw.randrange(8 * min(len(data), 128))
    data[place // 8] ^= 1 << place % 8


def cut(data: bytearray, draw: random.Random) -> None:
    """Leave out the end."""
    del data[draw.randrange(len(data)) :]


def blank(data: bytearray, draw: random.Random) -> None:
    """Fill a stretch with zeros, as lost sectors."""
    begin, end = _stretch(data, draw)
    data[begin:end] = bytes(end - begin)


def drop(data: bytearray, draw: random.Random) -> None:
    """Leave out a stretch."""
    begin, end = _stretch(data, draw)
    del data[begin:end]


def repeat(data: bytearray, draw: random.Random) -> None:
    """Put a stretch in twice."""
    begin, end = _stretch(data, draw)
    data[end:end] = data[begin:end]


def scramble(data: bytearray, draw: random.Random) -> None:
    """Fill a stretch with other bytes."""
    begin, end = _stretch(data, draw)
    data[begin:end] = draw.randbytes(end - begin)


def extreme(data: bytearray, draw: random.Random) -> None:
    """Put the largest or a huge number where a size may stand."""
    width = draw.choice((1, 2, 4, 8))
    place = draw.randrange(max(1, len(data) - width))
    data[place : place + width] = draw.choice((b"\xff", b"\x7f", b"\x00")) * width


def renumber(data: bytearray, draw: random.Random) -> None:
    """Replace a run of digits, as text has them, by another value."""
    digits = [place for place, byte in enumerate(data) if 48 <= byte < 58]
    if not digits:
        return flip_bit(data, draw)
    begin = end = draw.choice(digits)
    while end < len(data) and 48 <= data[end] < 58:
        end += 1
    data[begin:end] = draw.choice(NUMBERS)
    return None


def drop_bracket(data: bytearray, draw: random.Random) -> None:
    """Leave out one bracket, brace, quote or comma."""
    places = [place for place, byte in enumerate(data) if byte in b"[](){}<>\"',:"]
    if not places:
        return flip_bit(data, draw)
    del data[draw.choice(places)]
    return None


KINDS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bit, flip_bit, flip_bits, flip_early_bit, cut, blank, drop, repeat, scramble, extreme,
    renumber, drop_bracket,
)  # fmt: skip


def mutated(content: bytes, seed: str) -> bytes:
    """The content after one to three changes that the seed draws."""
    draw = random.Random(seed)
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if data:
            draw.choice(KINDS)(data, draw)
    return bytes(data)


def _stretch(data: bytearray, draw: random.Random) -> tuple[int, int]:
    begin = draw.randrange(len(data))
    return begin, min(len(data), begin + draw.choice((1, 4, 64, 512)))
