"""Where files are: paths, and `shapes:NAME` for the embedded shapes world, which is made on first use.

`shapes:train`, `shapes:val`, `shapes:held_out`, `shapes:trained_pairs` and `shapes:relations` name its shards,
`shapes:tokenizer.model` and `shapes:classes.json` the files beside them.
"""

import os

from vlm_jax.data import shapes
from vlm_jax.errors import InputError

_FILES = ("tokenizer.model", "classes.json", "manifest.json")


def locate(path: str, field: str) -> str:
    """The path or pattern that a setting names, with `~` resolved.

    Raises:
      InputError: `shapes:` with a name that the world does not have, or a cache folder that cannot be written.
    """
    scheme, colon, name = path.partition(":")
    if scheme != "shapes" or not colon:
        return os.path.expanduser(path)
    if name not in shapes.SPLITS + _FILES:
        raise InputError(f"{field} {path}: the shapes world has {', '.join(shapes.SPLITS + _FILES)}")
    world = shapes.World()
    folder = shapes.cache_folder(world)
    if not folder.exists():
        print(f"making the shapes world, once, in {folder}", flush=True)
    shapes.ensure(folder, world)
    return str(folder / (name if name in _FILES else f"{name}-*.array_record"))
