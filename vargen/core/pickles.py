"""PyTorch files, looked at before torch reads them: what is in one, and whether all of it is there."""

import argparse
import zipfile
from pathlib import Path
from typing import Any

from torch._tensor import _rebuild_from_type_v2

from vargen.core import archives
from vargen.core.opcodes import MOST_BYTES, Refused, Scan

DATA = [argparse.Namespace, _rebuild_from_type_v2]  # what torch has to be told that it may build, beside tensors
MAGIC = 0x1950A86A20F9469CFC6C  # of the files that torch wrote before it wrote zip files


def is_zip(path: Path) -> bool:
    """As torch tells its files from old ones: by the first bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_stored(path: Path) -> bool:
    """Whether all members of a zip file lie in it as they are, so that they can be mapped."""
    with archives.opened(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def scan(path: Path) -> Any:
    """What torch would make of a file, with a `Shape` for each tensor.

    `Refused` where it asks for what weights do not need; other errors where it is damaged.
    """
    if not is_zip(path):
        return _old(path)
    with archives.opened(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if min(member.header_offset for member in members.values()):
            raise zipfile.BadZipFile("something stands before its first member")
        top = next(iter(members)).split("/")[0]
        data = members.get(f"{top}/data.pkl")
        if data is None:
            raise zipfile.BadZipFile("it has no data.pkl")
        if data.file_size > MOST_BYTES:
            raise Refused(f"has {data.file_size} bytes beside its tensors, expected at most {MOST_BYTES}")

        def check(key: object, size: int) -> None:
            member = members.get(f"{top}/data/{key}")
            if size and (member is None or member.file_size < size):
                raise RuntimeError(f"it has no whole record of {size} bytes")

        return Scan(check).run(archive.read(data))


def _old(path: Path) -> Any:
    """The same of a file from before zip files: five pickles, and then all storages."""
    left = path.stat().st_size

    def check(_: object, size: int) -> None:
        nonlocal left
        left -= size
        if left < 0:
            raise RuntimeError("it is shorter than its tensors")

    with path.open("rb") as file:
        try:
            start = Scan(check).run(file)
        except (ValueError, LookupError, Refused):
            start = None
        if start != MAGIC:
            raise Refused("is no PyTorch or safetensors file")
        parts = [Scan(check).run(file) for _ in range(4)]
    return parts[2]
