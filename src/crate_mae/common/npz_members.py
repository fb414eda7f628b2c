"""Arrays of `.npz` archives: what they claim is compared with what they hold, nothing unpickled."""

import math
import zipfile
from typing import IO

import numpy as np
from numpy.lib import format as npy

from crate_mae.common.budgets import check_memory

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """(Shape, type) that the header of a `.npy` file claims; the file stands at its values then."""
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"a .npy file of an unknown version, {version}")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype


def check_names(archive: zipfile.ZipFile) -> None:
    """Raise BadZipFile where an archive's directory and its members' own headers name them apart.

    No checksum covers names, and an array whose name is damaged would only seem not to be there.
    """
    for member in archive.infolist():
        archive.open(member).close()  # opening compares the two


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray | None:
    """An array of an archive, read to its end, where its checksum is compared; None for a pickle.

    Raises ValueError, before memory is taken, where it holds something else than its header claims
    or more than fits.
    """
    with archive.open(member) as stream:
        shape, dtype = read_header(stream)
        if dtype.hasobject:
            return None
        claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
        if claimed != held:
            raise ValueError(
                f"{member.filename} claims {claimed:,} bytes of {shape} {dtype} and holds {held:,}"
            )
    check_memory(member.file_size, f"the values of {member.filename}")
    with archive.open(member) as stream:
        array: np.ndarray = npy.read_array(stream, allow_pickle=False)
        if stream.read(1):
            raise ValueError(f"{member.filename} holds more than its array")
    return array
