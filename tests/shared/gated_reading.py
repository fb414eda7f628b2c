"""Reading that stops at a gate, in processes that a test does not start itself."""

import os
from pathlib import Path
from time import sleep

from crate_mae.models.config import Preprocess
from crate_mae.sources.base import ImageSource

GATE, FREE = "CRATE_MAE_TEST_GATE", 4
"""The variable that names the file, and how many images are read before it is there."""


def stop_at_the_gate() -> None:
    """Let this process read images from the fifth on only once a file is there."""
    from crate_mae.batches import prepared

    read, gate = prepared.read_stretch, Path(os.environ[GATE])

    def stopping(source: ImageSource, preprocess: Preprocess, cut: range) -> prepared.Stretch:
        while cut.start >= FREE and not gate.exists():
            sleep(0.02)
        return read(source, preprocess, cut)

    prepared.read_stretch = stopping
