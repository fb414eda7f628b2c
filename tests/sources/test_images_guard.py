"""Whatever a decoder raises, the image is passed over and named: one guard for all of them."""

import tokenize

import pytest
from PIL import Image
from source_cases import Write

from crate_mae.sources import address
from crate_mae.sources.address import open_source
from crate_mae.sources.images import UnreadableImage, decode_image, decoding


class OddError(Exception):
    """What a library may come up with."""


@pytest.mark.parametrize(
    "error",
    [OddError("odd"), tokenize.TokenError("EOF", (1, 2)), RecursionError(), MemoryError(),
     KeyError("x"), StopIteration(), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_any_error_of_a_decoder_names_the_image(
    write: Write, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = write("a/0.png")

    def failing(*_: object, **__: object) -> Image.Image:
        raise error

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(UnreadableImage) as caught:
        decode_image(path, "a/0.png")
    assert caught.value.name == "a/0.png"
    assert caught.value.reason


def test_interrupts_pass() -> None:
    with pytest.raises(KeyboardInterrupt), decoding("x"):
        raise KeyboardInterrupt


def test_a_limit_that_is_no_number_is_no_fault_of_the_image(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a/0.png")
    monkeypatch.setenv("CRATE_MAE_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="CRATE_MAE_MAX_PIXELS"):
        decode_image(path, "a/0.png")


def test_any_error_of_a_reader_of_whole_sets_names_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: object) -> None:
        raise OddError("odd")

    monkeypatch.setitem(address._BY_READING, "npy", failing)
    with pytest.raises(ValueError, match=r"npy:x cannot be read \(OddError: odd\)"):
        open_source("npy:x")
