"""Memory of the batches that a worker process makes: shared, so that Grain hands it over as it is, where it copies what lies elsewhere.

Shared memory outlives its process. What was handed over is freed by the process that got it; the rest, read ahead when the iterator was
closed, is freed when the worker ends.
"""

import math
import threading
from multiprocessing import shared_memory, util
from typing import Any

import numpy as np
from grain import multiprocessing

_LARGE = 1 << 16
"""Bytes from which an array lies in shared memory."""
_kept: set[str] | None = None
"""Names of what this worker has not handed over yet; None: this is no worker, or it ends."""
_lock = threading.Lock()


def start() -> None:
    """Says that this process is a worker."""
    global _kept
    _kept = set()
    util.Finalize(None, _free, exitpriority=1)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array for a field of a batch, not initialised."""
    if math.prod(shape) * dtype.itemsize >= _LARGE:
        with _lock:
            if _kept is not None:
                array = multiprocessing.SharedMemoryArray(shape, dtype)
                _kept.add(array.metadata.name)
                return array
    return np.empty(shape, dtype)


def hand_over(made: Any) -> Any:
    """A batch with what belongs to it, as it is: the other process frees its memory from now on."""
    batch, _ = made
    for fields in batch.values():
        for array in fields.values():
            if _kept is not None and isinstance(array, multiprocessing.SharedMemoryArray):
                _kept.discard(array.metadata.name)
    return made


def _free() -> None:
    global _kept
    with _lock:  # threads that read ahead are still at work
        left, _kept = _kept or (), None
    for name in left:
        memory = shared_memory.SharedMemory(name)
        memory.close()
        memory.unlink()
