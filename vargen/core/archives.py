"""Zip files from outside (PyTorch's, numpy's npz): what their directories say, held against the file's own size."""

import struct
import zipfile
from collections import Counter
from pathlib import Path

from vargen.core.messages import shown

MOST_DIRECTORY = 32 << 20  # bytes of the list of members
FREE, MOST_RATIO = 256 << 20, 100  # what members may inflate to: so much, or as many times the file


def opened(path: Path) -> zipfile.ZipFile:
    """A zip file whose members can be read without surprise. zipfile.BadZipFile, saying why, where it is none."""
    size = path.stat().st_size
    if (listed := _directory_bytes(path, size)) > MOST_DIRECTORY:
        raise zipfile.BadZipFile(f"it has {listed} bytes of names, expected at most {MOST_DIRECTORY}")
    archive = zipfile.ZipFile(path)
    try:
        _check(archive.infolist(), size)
    except zipfile.BadZipFile:
        archive.close()
        raise
    return archive


def _check(members: list[zipfile.ZipInfo], size: int) -> None:
    total = sum(member.file_size for member in members)
    if total > max(FREE, MOST_RATIO * size):
        raise zipfile.BadZipFile(f"its members would be {total} bytes, and the file has {size}")
    stored = sum(member.file_size for member in members if member.compress_type == zipfile.ZIP_STORED)
    if stored > size:
        raise zipfile.BadZipFile(f"its members would be {stored} bytes as they are, and the file has {size}")
    names = Counter(member.filename.lower() for member in members)  # torch looks names up in any case
    if names and (most := names.most_common(1)[0])[1] > 1:
        raise zipfile.BadZipFile(f"it has the member {shown(most[0])} twice")


def _directory_bytes(path: Path, size: int) -> int:
    """What the end of a zip file says that its list of members takes; 0 where there is no such end."""
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 16:
            return 0
        (found,) = struct.unpack_from("<L", tail, at + 12)
        if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":  # where the longer record of large files is
            file.seek(min(struct.unpack_from("<Q", tail, at - 12)[0], size))
            longer = file.read(48)
            if len(longer) == 48 and longer.startswith(b"PK\x06\x06"):
                found = struct.unpack_from("<Q", longer, 40)[0]
    return found
