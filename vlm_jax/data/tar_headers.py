"""The headers of a tar: name, place and size of its members, read in a third of the time that `tarfile` takes, and strictly.

Plain, GNU and pax headers, of which a name and a size are used. What `tarfile` passes over in silence, a header that is damaged and an
archive that ends too early, is an error.
"""

import dataclasses
from collections.abc import Callable, Iterator

BLOCK = 512
_ZEROS = bytes(BLOCK)
_FILE, _SPARSE, _LONG_NAME, _LONG_LINK = b"0\x007", b"S", b"L", b"K"
_EMPTY = b"123456"
"""Links, devices, folders and pipes: no values follow, whatever their size says."""
_PAX, _PAX_OF_ALL = b"xX", b"g"
_LONGEST = 2**20
"""Bytes of a name or of pax values above which they are damage."""


class Damaged(ValueError):
    """Not the headers of a whole tar."""


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar; the values of what is no plain file are nowhere."""

    name: str
    start: int
    size: int
    is_file: bool


def members(read: Callable[[int, int], bytes]) -> Iterator[Member]:
    """The members in order, up to the end of the archive; at last one without a name, where the end begins.

    Args:
      read: (start, size) to the bytes there, fewer at the end of the file.

    Raises:
      Damaged: a header that is none, or the end of the file before the end of the archive.
    """
    place, name, pax = 0, "", {}
    while True:
        header = read(place, BLOCK)
        if len(header) < BLOCK or header == _ZEROS:
            if len(header) < BLOCK or name or pax:
                raise Damaged("no end of archive")
            yield Member("", place, 0, False)
            return
        if not _is_header(header):
            raise Damaged(f"no header at byte {place}")
        kind, size, values = header[156:157], _number(header[124:136]), place + BLOCK
        if kind in _LONG_NAME or kind in _LONG_LINK or kind in _PAX or kind in _PAX_OF_ALL:
            data = read(values, size) if size <= _LONGEST else b""
            if len(data) < size or size > _LONGEST:
                raise Damaged(f"a name or a pax header of {size} bytes at byte {place}")
            if kind in _LONG_NAME:
                name = _text(data)
            elif kind in _PAX:
                pax = _pax(data, place)
            place = values + _whole(size)
            continue
        if kind in _SPARSE or "GNU.sparse.major" in pax or "GNU.sparse.size" in pax:
            raise Damaged(f"a sparse file at byte {place}; write the tar without --sparse")
        if not name:
            name = pax.get("path") or _text(header[:100])
            if "path" not in pax and header[257:263] == b"ustar\0" and header[345]:
                name = f"{_text(header[345:500])}/{name}"
        size = _decimal(pax["size"], place) if "size" in pax else size
        is_file = kind in _FILE and not name.endswith("/")
        yield Member(name, values, size, is_file)
        place = values + (0 if kind in _EMPTY or (name.endswith("/") and kind in _FILE) else _whole(size))
        name, pax = "", {}


def _is_header(header: bytes) -> bool:
    """By its sum: of unsigned bytes, as it should be, or of signed ones, as some old programs have it; its own field counts as spaces."""
    told, field = _number(header[148:156]), header[148:156]
    found = sum(header) - sum(field) + 8 * 32
    return told == found or told == found - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _number(field: bytes) -> int:
    """Octal digits, or with the first bit set a number in base 256."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError as error:
        raise Damaged(f"{field!r} is no octal number") from error


def _pax(data: bytes, place: int) -> dict[str, str]:
    """Lines `30 mtime=1700000000.5`, their length before them."""
    found, start = {}, 0
    while start < len(data) and data[start]:
        length, _, _ = data[start : start + 20].partition(b" ")
        size = int(length) if length.isdigit() else 0
        line = data[start + len(length) + 1 : start + size]
        if not line.endswith(b"\n") or b"=" not in line:
            raise Damaged(f"pax header at byte {place}")
        name, _, value = line[:-1].partition(b"=")
        found[name.decode("utf-8", errors="surrogateescape")] = value.decode("utf-8", errors="surrogateescape")
        start += size
    return found


def _decimal(text: str, place: int) -> int:
    if not text.isdecimal():
        raise Damaged(f"pax header at byte {place}: a size of {text!r}")
    return int(text)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", errors="surrogateescape")


def _whole(size: int) -> int:
    """In whole blocks."""
    return -(-size // BLOCK) * BLOCK
