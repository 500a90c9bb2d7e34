"""A manifest beside the files of a checkpoint: their names, sizes and hashes, so that a damaged file is found before it is used.

Storage formats of arrays do not notice a flipped bit. The hash is SHA-256, for which processors have instructions, and which `sha256sum`
can check by hand.
"""

import concurrent.futures
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlm_jax.errors import InfrastructureError

OnCorrupt = Literal["previous", "stop"]
NAME = "manifest.json"
_THREADS = 8
_SHOWN = 4


class Damaged(InfrastructureError):
    """Files of a checkpoint are missing, or are not what was written."""


def write(folder: Path) -> None:
    """Hashes every file below the folder, which must be complete, and writes the manifest in one move."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(NAME)}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        entries = dict(zip(files, threads.map(_entry, files.values()), strict=True))
    draft = folder / f"{NAME}.draft"
    with draft.open("w") as out:
        json.dump({"files": entries, "sha256": _seal(entries)}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(folder / NAME)


def verify(folder: Path) -> Literal["verified", "unverified"]:
    """Compares every file with the manifest; `unverified` where there is none, as after a process was killed before it wrote it.

    Raises:
      Damaged: a file is missing or differs, or the manifest itself is damaged; names the first files with what was expected and found.
    """
    try:
        entries = _read(folder / NAME)
    except FileNotFoundError:
        return "unverified"
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda name: _found(folder / name, entries[name]), entries)
    wrong = [f"{name}: {_say(entries[name], have)}" for name, have in zip(entries, found, strict=True) if have != entries[name]]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise Damaged(f"checkpoint {folder} is damaged: {'; '.join(wrong[:_SHOWN])}{more}")
    return "verified"


def last_good(folders: Sequence[Path], on_corrupt: OnCorrupt) -> int:
    """The index of the first of these folders, given in order of preference, whose files are as they were written.

    What is damaged or unverified is printed. Process 0 looks, and the others are told.

    Raises:
      Damaged: there is none, or the first one is damaged and `on_corrupt` is `stop`.
    """
    chosen, damages = -1, []
    if jax.process_index() == 0:
        for index, folder in enumerate(folders):
            try:
                if verify(folder) == "unverified":
                    _warn(f"checkpoint {folder}: unverified, it has no {NAME}; its run was killed before it wrote one")
                chosen = index
                break
            except Damaged as error:
                damages.append(str(error))
            except OSError as error:
                damages.append(f"checkpoint {folder} is damaged: {error}")
            if on_corrupt == "stop":
                break
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen < 0:
        others = ", ".join(folder.name for folder in folders[1:])
        advice = f"--on-corrupt previous goes on from an earlier one of {others}" if on_corrupt == "stop" else "no other is good"
        said = damages or [f"process 0 found checkpoint {folders[0]} damaged, and says how"]
        raise Damaged("; ".join([*said, *([advice] if others else ["there is no other to use instead"])]))
    for damage in damages:
        _warn(f"{damage}; {folders[chosen].name} is used instead")
    return chosen


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read(path: Path) -> dict[str, Any]:
    """The entries of a manifest that is whole."""
    try:
        content = json.loads(path.read_bytes())
        entries, seal = content["files"], content["sha256"]
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"checkpoint {path.parent} is damaged: {path.name} cannot be read") from None
    if _seal(entries) != seal:
        raise Damaged(f"checkpoint {path.parent} is damaged: {path.name} does not have the hash that it says")
    return entries


def _seal(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _found(path: Path, expected: dict[str, Any]) -> dict[str, Any] | None:
    """What there is of a file; None: nothing. Where the size is wrong already, nothing is hashed."""
    try:
        size = path.stat().st_size
        return _entry(path) if size == expected["size"] else {"size": size}
    except FileNotFoundError:
        return None


def _say(expected: dict[str, Any], found: dict[str, Any] | None) -> str:
    if found is None:
        return f"missing, {expected['size']:,} bytes expected"
    if found["size"] != expected["size"]:
        return f"{found['size']:,} bytes, {expected['size']:,} expected"
    return f"SHA-256 {found['sha256'][:12]}..., {expected['sha256'][:12]}... expected"
