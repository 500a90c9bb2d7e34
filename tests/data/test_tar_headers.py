import io
import random
import tarfile

import pytest

from vlm_jax.data import tar_headers


def of(data: bytes) -> list[tar_headers.Member]:
    return list(tar_headers.members(lambda start, size: data[start : start + size]))


def archive(form: int, seed: int) -> bytes:
    """Files, folders and links with short, long and foreign names, and times that make pax headers."""
    random_ = random.Random(seed)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for _ in range(random_.randint(0, 7)):
            parts = ["x" * random_.randint(1, 60), "café", "北京", "a.b"]
            depth = random_.randint(1, 3 if form == tarfile.USTAR_FORMAT else 6)
            info = tarfile.TarInfo("/".join(random_.choice(parts) for _ in range(depth)))
            info.type = random_.choice([tarfile.REGTYPE] * 5 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
            info.size = random_.choice([0, 1, 511, 512, 513, 3000]) if info.isreg() else 0
            info.linkname = "y" * random_.choice([3, 90]) if info.issym() else ""
            info.mtime, info.uname = random_.choice([0, 1_700_000_000.25]), random_.choice(["", "hé"])
            try:
                tar.addfile(info, io.BytesIO(b"q" * info.size))
            except ValueError:
                continue  # a name too long for ustar
    return out.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"])
def test_members_are_those_that_tarfile_finds(form):
    for seed in range(60):
        data = archive(form, seed)
        wanted = [(m.name, m.offset_data, m.size, m.isreg()) for m in tarfile.open(fileobj=io.BytesIO(data), mode="r:")]
        *found, end = of(data)
        assert [(m.name.rstrip("/"), m.start, m.size, m.is_file) for m in found] == wanted
        assert end.name == "" and not any(data[end.start :])


def test_a_size_beyond_eight_gigabytes_is_known():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("big")
        info.size = 2**34
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
    header = out.getvalue()[:512]
    found = next(tar_headers.members(lambda start, size: header if start == 0 else b""))
    assert found == tar_headers.Member("big", 512, 2**34, True)


@pytest.mark.parametrize("place,value,message", [(3, 7, "at byte 0"), (150, 57, "octal|no header"), (1540, 1, "at byte 1536")])
def test_damage_is_an_error_and_never_an_early_end(place, value, message):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in "ab":
            info = tarfile.TarInfo(name)
            info.size = 600
            tar.addfile(info, io.BytesIO(bytes(600)))
    data = bytearray(out.getvalue())
    data[place] = value
    with pytest.raises(tar_headers.Damaged, match=message):
        of(bytes(data))
    for cut in (100, 700, 1536, 2000, 3072):
        with pytest.raises(tar_headers.Damaged):
            of(out.getvalue()[:cut])
