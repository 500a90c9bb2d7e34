"""Weight files as arrays by name: safetensors, whole or in shards with an index, npz, and PyTorch's own where torch is installed.

Files come from strangers: nothing here unpickles, and a small file cannot become a large one. Half precision stays what it is.
"""

import importlib
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from vlm_jax import files as whole
from vlm_jax.errors import InputError

NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""What the weights of a directory are called, the preferred first."""
SUFFIXES = (".safetensors", ".index.json", ".npz", ".bin", ".pt", ".pth")
_EXPANSION = 20
"""How many times its size an npz may unpack to; savez writes 1, savez_compressed 1 to 2 for trained weights."""
_SMALL = 2**26
"""Bytes up to which an npz may unpack whatever its size."""
_HEADER = 2**16


def locate(path: Path) -> Path:
    """The file with the weights: `path` itself, or the one in this directory.

    Raises:
      InputError: no such path, a directory without weights, or with several files and none of the known names.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"weights {path}: no such file or directory")
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(file for suffix in SUFFIXES for file in path.glob(f"*{suffix}"))
    if len(found) != 1:
        what = f"several files of weights ({', '.join(file.name for file in found[:4])})" if found else "no file of weights"
        raise InputError(f"weights {path}: {what}; give one, such as {path / NAMES[0]}")
    return found[0]


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, or of the shards that an index names.

    Raises:
      InputError: no such file, a format that is not read, a damaged file, or one with pickled objects.
    """
    if not path.is_file():
        raise InputError(f"weights {path}: no such file")
    if path.name.endswith(".index.json"):
        return _sharded(path)
    readers = {".safetensors": _safetensors, ".npz": _npz, ".bin": _torch, ".pt": _torch, ".pth": _torch}
    if path.suffix not in readers:
        raise InputError(f"weights {path}: not a known format; {', '.join(sorted(readers))} are read")
    return readers[path.suffix](path)


def write_safetensors(path: Path, weights: Mapping[str, np.ndarray], **metadata: str) -> None:
    """Writes one safetensors file; `metadata` is kept in its header."""
    from safetensors import numpy as writer

    writer.save_file({name: np.asarray(x, order="C") for name, x in weights.items()}, path, metadata=metadata)


def read_json(path: Path, field: str) -> Any:
    """A JSON file.

    Raises:
      InputError: it is missing, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{field} {path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{field} {path}: not JSON ({error})") from None


def model_type(folder: Path) -> Any:
    """What config.json of a directory of transformers says that it is; None where it says nothing.

    Raises:
      InputError: it is not JSON.
    """
    file = folder / "config.json"
    config = read_json(file, "configuration") if file.is_file() else None
    return config.get("model_type") if isinstance(config, dict) else None


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    whole.write_text(path, json.dumps(content, indent=2) + "\n")


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # not a mapping
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"weights {path}: not a whole safetensors file ({error}); download it again") from None


def _sharded(path: Path) -> dict[str, np.ndarray]:
    index = read_json(path, "weights")
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise InputError(f"weights {path}: an index has a weight_map from names to files, this one has none")
    weights: dict[str, np.ndarray] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise InputError(f"weights {path}: it names the shard {shard!r}, which is not a file beside it")
        found = read(path.parent / shard)
        named = {name for name, where in places.items() if where == shard}
        if named != found.keys():
            raise InputError(
                f"weights {path}: its shard {shard} and it disagree on {', '.join(sorted(named ^ found.keys())[:4])}; "
                "download both again"
            )
        weights |= found
    return weights


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > max(_SMALL, _EXPANSION * path.stat().st_size):
                raise InputError(f"weights {path}: {path.stat().st_size:,} bytes that unpack to {total:,}; refused")
            for member in members:
                with archive.open(member) as file:
                    _check_member(path, member, file)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _bfloat16(arrays[name]) for name in arrays.files}
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"weights {path}: not a whole npz file ({error}); download it again") from None


def _check_member(path: Path, member: zipfile.ZipInfo, file: Any) -> None:
    """Nothing but numbers, and as many bytes as they need."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise InputError(f"weights {path}: {member.filename} has npy version {version}, which weights do not need; refused")
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read_header(file, max_header_size=_HEADER)
    if dtype.hasobject:
        raise InputError(f"weights {path}: {member.filename} holds pickled objects, which can run code; refused")
    if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
        raise InputError(f"weights {path}: {member.filename} says shape {shape}, and has another size; download it again")


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """npz has no name for bfloat16, and keeps its bytes as a void of two."""
    return x.view(ml_dtypes.bfloat16) if x.dtype == np.dtype("V2") else x


def _torch(path: Path) -> dict[str, np.ndarray]:
    _refuse_torchscript(path)
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise InputError(
            f"weights {path}: a pickle, which only PyTorch's own reader is trusted with, and torch is not installed; "
            "take the safetensors file, or install torch"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly every type here
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"weights {path}: torch's weights-only reader refuses it ({why})") from None
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(x, torch.Tensor) for x in loaded.values()):
        raise InputError(f"weights {path}: not a dict of tensors by name")
    prefix = "module." if all(name.startswith("module.") for name in loaded) else ""
    return {name.removeprefix(prefix): _of_tensor(torch, x) for name, x in loaded.items()}


def _refuse_torchscript(path: Path) -> None:
    """An archive of TorchScript holds a program beside its weights; no reader takes only the latter."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            program = f"import torch; torch.save(torch.jit.load({path.name!r}, 'cpu').state_dict(), 'weights.pt')"
            raise InputError(
                f"weights {path}: a TorchScript archive, as OpenAI publishes CLIP, and its program is not run here; where you trust it, "
                f'write its weights: python -c "{program}", and give that file, with an open_clip_config.json beside it'
            )


def _of_tensor(torch: Any, x: Any) -> np.ndarray:
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()
