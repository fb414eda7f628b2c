"""JPEG 2000 of many bits and of signed integers, against imagecodecs and what was stored."""

import builtins
from typing import Any

import numpy as np
import pytest

from crate_mae.sources.images import UnreadableImage, decode_image, probe_image

codecs = pytest.importorskip("imagecodecs")

RNG = np.random.default_rng(0)


def _encoded(values: np.ndarray, bits: int) -> bytes:
    data: bytes = codecs.jpeg2k_encode(values, level=0, bitspersample=bits, reversible=True)
    np.testing.assert_array_equal(codecs.jpeg2k_decode(data), values)
    return data


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_white_stays_white_at_any_depth(bits: int) -> None:
    values = RNG.integers(0, 1 << bits, (9, 11, 3)).astype(np.uint8 if bits == 8 else np.uint16)
    values[:2] = (1 << bits) - 1
    data = _encoded(values, bits)
    image = decode_image(data, "x").numpy()
    np.testing.assert_array_equal(image, np.moveaxis(np.right_shift(values, bits - 8), -1, 0))
    unread = probe_image(data, "x").unread
    assert unread == (None if bits == 8 else unread)
    assert bits == 8 or f"the lower {bits - 8} of {bits} bits" in str(unread)


def test_grey_keeps_all_its_bits() -> None:
    values = RNG.integers(0, 65536, (9, 11)).astype(np.uint16)
    image = decode_image(_encoded(values, 16), "x")[0].numpy()
    np.testing.assert_allclose(image, values / 65535, rtol=1e-6)


def test_signed_integers_have_no_known_scale() -> None:
    values = RNG.integers(-2000, 2000, (9, 11)).astype(np.int16)
    with pytest.raises(UnreadableImage, match=r"JPEG 2000 of signed integers.*save it as floats"):
        decode_image(codecs.jpeg2k_encode(values, level=0, reversible=True), "x")


def test_without_imagecodecs_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data, usual = _encoded(RNG.integers(0, 4096, (4, 5, 3)).astype(np.uint16), 12), __import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "imagecodecs":
            raise ImportError(name)
        return usual(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnreadableImage, match=r"12-bit colours.*pip install \"crate-mae\[tiff\]\""):
        decode_image(data, "x")
