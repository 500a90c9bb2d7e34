"""`.npz` files, read without unpickling and without trusting what they say of their sizes."""

import dataclasses
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from vlm_jax.data import npy

LARGEST = 2**30
"""Bytes of the arrays of a file that are unpacked or kept in memory; those that stay in the file do not count."""
DAMAGED = (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, struct.error)
"""What reading a damaged file may raise."""


@dataclasses.dataclass(frozen=True)
class Member:
    """An array in a file."""

    name: str
    header: npy.Header
    start: int
    """Where its values begin in the file; -1: compressed."""

    def __str__(self) -> str:
        return f"{self.name} {self.header.dtype}{list(self.header.shape)}"


class File:
    """The arrays of one file, as long as it is open. Raises `DAMAGED`, and OSError where it cannot be read."""

    def __init__(self, path: str):
        """Raises for no zip, or two members of one name."""
        self._zip, self._raw = zipfile.ZipFile(path), open(path, "rb")
        self._size, self._kept = self._raw.seek(0, 2), 0
        listed = self._zip.infolist()
        if len({info.filename for info in listed}) < len(listed):
            raise ValueError("has two members of one name")
        self._members = {info.filename.removesuffix(".npy"): info for info in listed if info.filename.endswith(".npy")}
        self.names = sorted(self._members)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: Any) -> None:
        self._zip.close()
        self._raw.close()

    def member(self, name: str) -> Member:
        """Where an array lies, and whether its size is what its header says; counts it as kept in memory if it is compressed."""
        info = self._members[name]
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is encrypted or packed in an unknown way; write it with np.savez")
        stored = info.compress_type == zipfile.ZIP_STORED
        if not stored:
            self._keep(name, info.file_size)
        with self._zip.open(info) as file:
            header = npy.header(file.read(npy.BYTES))
        if header.start + header.size != info.file_size:
            found = Member(name, header, -1)
            raise ValueError(f"{found}: {info.file_size - header.start} bytes instead of {header.size}; write it again")
        return Member(name, header, self._start(info) + header.start if stored else -1)

    def read(self, name: str) -> np.ndarray:
        """A whole array, in memory."""
        info = self._members[name]
        if self.member(name).start >= 0:
            self._keep(name, info.file_size)
        return npy.parse(self._zip.read(info))

    def unpack(self, member: Member) -> bytes:
        """The bytes of a compressed array, its header among them."""
        data = self._zip.read(f"{member.name}.npy")
        if npy.header(data) != member.header or len(data) != member.header.start + member.header.size:
            raise ValueError(f"{member.name} changed since the file was opened")
        return data

    def _start(self, info: zipfile.ZipInfo) -> int:
        self._raw.seek(info.header_offset)
        local = self._raw.read(30)
        if local[:4] != b"PK\x03\x04" or len(local) < 30:
            raise ValueError(f"{info.filename} is not where the file's index says; copy it again")
        start = info.header_offset + 30 + sum(struct.unpack_from("<HH", local, 26))
        if info.compress_size != info.file_size or start + info.file_size > self._size:
            raise ValueError(f"{info.filename} ends behind the end of the file; copy it again")
        return start

    def _keep(self, name: str, size: int) -> None:
        self._kept += size
        if self._kept > LARGEST:
            raise ValueError(
                f"{name} brings what is held in memory to {self._kept:,} bytes, more than {LARGEST:,}; write it with np.savez, "
                "which does not compress, or in several files"
            )
