"""Members of `.npz` archives: a damaged name hides no array."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from source_cases import opened

from crate_mae.common.npz_members import check_names


def archive(path: Path) -> bytes:
    """The bytes of an archive of images and labels, written to a path, too."""
    np.savez(path, images=np.zeros((4, 6, 6, 3), np.uint8), labels=np.arange(4) % 2)
    return path.read_bytes()


@pytest.mark.parametrize("name", [b"images.npy", b"labels.npy"])
@pytest.mark.parametrize("place", [0, 1], ids=["header", "directory"])
@pytest.mark.parametrize("letter", [0, 3, 8])
def test_a_damaged_name_is_told(tmp_path: Path, name: bytes, place: int, letter: int) -> None:
    path = tmp_path / "set.npz"
    whole = archive(path)
    with zipfile.ZipFile(path) as sound:
        check_names(sound)
    assert opened(f"npy:{path}").label(1) == 1
    starts = [found.start() for found in re.finditer(re.escape(name), whole)]
    assert len(starts) == 2
    changed = bytearray(whole)
    changed[starts[place] + letter] ^= 0x20  # another case: a name that might be
    path.write_bytes(changed)
    with zipfile.ZipFile(path) as damaged, pytest.raises(zipfile.BadZipFile, match="differ"):
        check_names(damaged)
    with pytest.raises(ValueError, match=r"npy:.*set\.npz: damaged or cut off: File name in dir"):
        opened(f"npy:{path}")
