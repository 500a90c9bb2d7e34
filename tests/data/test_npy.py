"""The .npy format, read without numpy's own parser."""

import io
import threading

import numpy as np
import pytest

from vlm_jax.data import npy


def saved(array, **options) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), **options)
    return out.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<i8").reshape(2, 3),
        np.float32(3),
        np.array(["a", "caf\u00e9"]),
        np.zeros((2, 0), "?"),
        np.array([b"x"]),
        np.arange(3, dtype=">u2"),
    ],
    ids=str,
)
def test_what_numpy_writes_is_read(array, version):
    found = npy.parse(saved(array, version=version))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.asarray(array).dtype and found.shape == np.shape(array)


@pytest.mark.parametrize(
    "data,message",
    [
        (b"", "not a .npy"),
        (b"PK\x03\x04" + bytes(20), "not a .npy"),
        (saved(np.array([{}], object), allow_pickle=True), "nothing is unpickled"),
        (saved(np.zeros(2, [("a", "<i4")])), "of objects, fields"),
        (saved(np.zeros(2, "M8[s]")), "objects, fields or an unknown"),
        (saved(np.zeros(2, "<c8")), "of complex64: nothing is unpickled"),
        (saved(np.asfortranarray(np.zeros((2, 3)))), "ascontiguousarray"),
        (saved(np.arange(5))[:-1], r"int64\[5\] with 39 bytes instead of 40"),
        (saved(np.arange(5)) + b"x", "with 41 bytes instead of 40"),
        (saved(np.arange(5)).replace(b"(5,)", b"(-5,"), "unknown header"),
        (saved(np.arange(5)).replace(b"(5,), }     ", b"(99999999,) "), "unknown header|instead of"),
        (saved(np.arange(5)).replace(b"'<i8'", b"exit()"), "unknown header|not a"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"(" * 1000, "unknown header"),
    ],
)
def test_anything_else_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        npy.parse(data)


def test_threads_do_not_disturb_each_other():
    data, failed = saved(np.arange(5)), []

    def parse():
        try:
            for _ in range(300):
                npy.parse(data)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=parse) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed
