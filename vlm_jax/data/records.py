"""Records: the one format in which data sets are written, msgpack maps in ArrayRecord shards.

A pairs record has `image` (encoded bytes) and `captions` (list of strings); anything else it carries (label, scene, key) is
handed through to who asks for it. Values are numbers, strings, bytes, None, lists, maps and numeric numpy arrays; nothing
is ever unpickled.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from vlm_jax import errors

ARRAY = 1
"""Extension type of a numpy array: dtype and shape as msgpack, then the bytes in C order."""
WRITER_OPTIONS = "group_size:1,uncompressed"
"""One record a chunk: the reader seeks to a record; the images inside are compressed already."""


class RecordError(errors.InputError):
    """One record cannot be used; the message names its shard, its key and what is wrong with it."""


def kind(reason: str) -> str:
    """What several reasons have in common: the words, with N for every number."""
    return re.sub(r"\d[\d,.]*\d|\d", "N", reason)


def encode(record: Mapping[str, Any]) -> bytes:
    """Packs one record.

    Raises:
      TypeError: a value of a type that the format does not hold.
    """
    return msgpack.Packer(default=_pack_array).pack(dict(record))


def decode(data: bytes) -> dict[str, Any]:
    """Unpacks one record.

    Raises:
      RecordError: the bytes are not a record.
    """
    try:
        record = msgpack.unpackb(data, ext_hook=_unpack_array, raw=False, strict_map_key=True)
    except Exception as error:  # the header of an array may hold anything, and numpy raises many types
        raise RecordError(f"not a msgpack record ({error}); write it with vlm_jax.data.records.write") from error
    if not isinstance(record, dict):
        raise RecordError(f"a {type(record).__name__}, not a map; write it with vlm_jax.data.records.write")
    return record


def shard_paths(prefix: str, shards: int) -> list[str]:
    """The names of all shards of a data set, in order."""
    return [f"{prefix}-{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]


def write(prefix: str, records: Iterable[Mapping[str, Any]], shards: int) -> list[str]:
    """Writes records round robin into `<prefix>-00000-of-00004.array_record` and so on, and returns the paths.

    The shards get their names only when all of them are complete; a run that fails leaves none.

    Raises:
      InputError: no shards asked for, fewer records than shards, or a folder that cannot be written.
    """
    if shards < 1:
        raise errors.InputError(f"shards {shards}: at least one is needed")
    paths = shard_paths(prefix, shards)
    unfinished = [f"{path}.unfinished-{os.getpid()}" for path in paths]
    try:
        os.makedirs(os.path.dirname(os.path.abspath(prefix)), exist_ok=True)
        for path in unfinished:
            open(path, "wb").close()
    except OSError as error:
        raise errors.InputError(f"{prefix}: cannot write there ({error.strerror}); choose another folder") from error
    try:
        writers = [array_record_module.ArrayRecordWriter(path, WRITER_OPTIONS) for path in unfinished]
        count = 0
        try:
            for count, record in enumerate(records, start=1):
                writers[(count - 1) % shards].write(encode(record))
        finally:
            for writer in writers:
                writer.close()
        if count < shards:
            raise errors.InputError(f"{prefix}: {count} records for {shards} shards; write at most {count} shards")
        for path, final in zip(unfinished, paths, strict=True):
            os.replace(path, final)
    finally:
        for path in unfinished:
            if os.path.exists(path):
                os.remove(path)
    return paths


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        header = msgpack.Packer().pack([value.dtype.str, list(value.shape)])
        return msgpack.ExtType(ARRAY, header + value.tobytes())
    raise TypeError(f"a record holds numbers, strings, bytes, lists, maps and numeric arrays, not {type(value).__name__}")


def _unpack_array(code: int, data: bytes) -> np.ndarray:
    if code != ARRAY:
        raise ValueError(f"unknown extension type {code}")
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    dtype, shape = unpacker.unpack()
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise ValueError(f"array of type {dtype}")
    return np.frombuffer(data, dtype, offset=unpacker.tell()).reshape(shape)
