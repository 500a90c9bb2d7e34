"""Files that a reader finds whole, as they were or as they are now, wherever the writer is stopped."""

import os
from pathlib import Path


def write(path: str | os.PathLike, content: bytes) -> None:
    """Writes under another name in the same folder, which must exist, then renames.

    Raises:
      OSError: the disk refuses; the old file stays.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """As `write`, in UTF-8; characters that it lacks become `?`."""
    write(path, text.encode("utf-8", "replace"))
