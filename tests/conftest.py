"""Fixtures of all tests: one thread, the settings of property tests, small image files."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image
from source_cases import Encode, MakeImage, Write

# Tiny models run fastest on one thread, sums then keep one order, and the processes of pytest-xdist
# have a core each: here, in fixtures of a whole module, and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# What a shell starts in the background ignores Ctrl-C, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _not_awaited(fd: object) -> None:
    """What replaces `os.fsync`: no test loses power, and disks can take longer than the test."""


os.fsync = _not_awaited

# A slow or busy machine is no fault of what is tested, and a test's outcome does not depend on the
# tests of yesterday; the seed of a failure is printed, and --hypothesis-seed repeats it.
settings.register_profile(
    "anywhere", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("anywhere")
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"hypothesis-{os.getuid()}")


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's way, which looks at all of it often."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give it back, so that libraries find nothing left over when the process ends."""
    gc.unfreeze()


@pytest.fixture
def make_image() -> MakeImage:
    """A random image: make_image(height, width, mode="RGB", seed=0)."""

    def make(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
        bands = len(Image.new(mode, (1, 1)).getbands())
        values = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
        return Image.frombytes(mode, (width, height), values.tobytes())

    return make


@pytest.fixture
def encode(make_image: MakeImage) -> Encode:
    """The bytes of an image file: encode(image or (height, width), "PNG", **options)."""

    def to_bytes(
        image: Image.Image | tuple[int, int], kind: str = "PNG", seed: int = 0, **options: object
    ) -> bytes:
        if isinstance(image, tuple):
            image = make_image(*image, seed=seed)
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return to_bytes


@pytest.fixture
def write(tmp_path: Path, encode: Encode) -> Write:
    """Write an image file below tmp_path: write("a/b.png", (height, width), ...)."""

    def to_file(name: str, image: object = (4, 5), kind: str = "PNG", **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image if isinstance(image, bytes) else encode(image, kind, **options))
        return path

    return to_file


@pytest.fixture
def pictures(encode: Encode) -> list[bytes]:
    """The bytes of four image files of 4 x 5 pixels."""
    return [encode((4, 5), seed=seed) for seed in range(4)]


@pytest.fixture
def svg_words() -> Iterator[None]:
    """Words in SVG files stay text."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcParams["svg.fonttype"] = "none"
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Each test begins on one thread, whatever the one before did."""
    torch.set_num_threads(1)
