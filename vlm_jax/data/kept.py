"""Arrays that are made once and kept in the cache folder: what a pass over a whole data set has found."""

import hashlib
import os
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import tar_index


def array(kind: str, name: str, make: Callable[[], np.ndarray], dtype: Any = np.int64) -> np.ndarray:
    """dtype[n], mapped from the cache folder, so that the processes of a machine share it; made on first use.

    Args:
      kind: the folder in the cache.
      name: everything that the values follow from; another name is another array.
      make: makes it.

    Raises:
      InputError: the cache folder cannot be written; what `make` raises.
    """
    path = tar_index.cache_folder() / kind / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.{np.dtype(dtype).name}"
    if not path.is_file():
        made = np.asarray(make(), dtype)
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}")  # hosts may share the folder
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.tofile(unfinished)
            os.replace(unfinished, path)
        except OSError as error:
            raise errors.InputError(f"cache folder {path.parent}: {error.strerror}; set VLM_JAX_CACHE to one that can be written") from None
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
