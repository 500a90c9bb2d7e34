"""A process that feeds its rows of three streams and writes what they were: `python stream_of_keys.py SETTINGS`, as JSON."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from vlm_jax.data import clips, images, mixtures, pages, pipeline, text

BATCH = 12


def streams(folder: Path) -> dict:
    """A mixture of three sources, documents, and clips."""
    tokenizer = text.Tokenizer(f"{folder}/tiny.model", length=32)
    transform = images.Transform(size=8, resize_to=9, crop="random", flip=0.5)
    pairs = pipeline.Pairs(f"{folder}/pairs.tar", "", tokenizer, transform)
    parts = {
        "tar": pairs,
        "records": pipeline.Pairs(f"{folder}/pairs-*.array_record", "", tokenizer, transform, caption="all"),
        "folder": pipeline.Pairs(f"{folder}/images", "", tokenizer, transform, caption="first"),
    }
    return {
        "pairs": mixtures.Mixture(parts, {"tar": 5, "records": 2, "folder": 1}),
        "pages": pages.Pages(f"{folder}/docs.jsonl", "", tokenizer, transform, images=2, next_image=0.5, batch_size=4),
        "video": clips.Clips(f"{folder}/clips-*.array_record", "", tokenizer, transform, frames=3, batch_size=4),
    }


def digests(batch: pipeline.Batch) -> dict[str, list[str]]:
    """Each row by its record and a hash of all its values."""
    found = {}
    for name, fields in batch.items():
        records = zip(fields.get("source", np.zeros(len(fields["example"]), int)), fields["example"], strict=True)
        hashes = [
            hashlib.sha256(b"".join(fields[field][row].tobytes() for field in sorted(fields))).hexdigest()[:12]
            for row in range(len(fields["example"]))
        ]
        found[name] = [f"{source}:{record} {digest}" for (source, record), digest in zip(records, hashes, strict=True)]
    return found


def main(folder: str, host: int, hosts: int, workers: int, state: dict, steps: int, out: str) -> None:
    """Feeds up to a step, a line for each in `out`: the state before it, and its rows."""
    iterator = pipeline.train_iterator(
        streams(Path(folder)),
        batch_size=BATCH,
        seed=7,
        rows=lambda size: np.split(np.arange(size), hosts)[host],
        workers=workers,
    )
    iterator.set_state(state)
    with open(out, "a") as file:
        while iterator.get_state()["step"] < steps:
            before = iterator.get_state()
            file.write(json.dumps({"state": before, "rows": digests(next(iterator))}) + "\n")
            file.flush()
    iterator.close()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
