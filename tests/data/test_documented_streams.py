"""The programs of docs/data.md that make streams run as they stand."""

import json
import re
from pathlib import Path

import pytest

from vlm_jax.data import moving_shapes, shapes

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("stream", "field", "shape"), [("pages.Pages(", "images", (8, 5, 224, 224, 3)), ("clips.Clips(", "frames", (8, 4, 64, 64, 3))]
)
def test_a_program_of_the_document_runs(stream, field, shape, tmp_path, monkeypatch, encode_image, noise):
    """In a folder that has what it names."""
    (block,) = [block for block in BLOCKS if stream in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(moving_shapes, "COUNTS", {"clips": 8, "clips_val": 1})
    monkeypatch.setattr(shapes, "World", lambda: SMALL)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.png").write_bytes(encode_image(noise(0, 9, 9)))
    words = " ".join(f"word{i} of a text" for i in range(200))
    lines = [{"items": [{"image": "a.png"}, {"text": f"{words} number {i}"}]} for i in range(20)]
    (tmp_path / "pages" / "docs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made: dict = {}
    exec(block, made)
    found = made["batch"][field] if field == "images" else made["frames"]
    made["batches"].close()
    assert found.shape == shape and found.any()


SMALL = shapes.World(one_object=16, two_objects=0, val=0, held_out=0, trained_pairs=0, relations=0, shards=1)
