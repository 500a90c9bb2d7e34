"""Data processes that are killed: the stream of keys goes on exactly, with any number of workers and hosts. Nothing is trained."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import stream_of_keys
from PIL import Image
from test_survival import left

from vlm_jax.data import pipeline, records, vocabulary

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24
"""Of 12 examples, 64 of them in all three sources of the mixture: epochs end in each of them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Tars, shards, images, documents and clips."""
    root = tmp_path_factory.mktemp("stream_of_keys")

    def png(seed: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 11, 3), np.uint8)).save(out, "PNG")
        return out.getvalue()

    def words(i: int) -> str:
        return f"the thing with number {i} is here and there"

    with tarfile.open(root / "pairs.tar", "w") as tar:
        for i in range(37):
            for ending, data in (("png", png(i)), ("txt", words(i).encode())):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    records.write(str(root / "pairs"), ({"image": png(i), "captions": [words(i), "the same"]} for i in range(20)), 2)
    records.write(str(root / "clips"), ({"frames": [png(i), png(i + 1)] * 3, "captions": [words(i)]} for i in range(9)), 1)
    (root / "images").mkdir()
    for i in range(7):
        (root / "images" / f"{i}.png").write_bytes(png(i))
        (root / "images" / f"{i}.txt").write_text(words(i))
    pages = [{"items": [{"text": words(i)}, {"image": f"images/{i % 7}.png"}, {"text": words(i + 1)}]} for i in range(19)]
    (root / "docs.jsonl").write_text("\n".join(map(json.dumps, pages)))
    (root / "tiny.model").write_bytes(vocabulary.train(map(words, range(200)), 60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_JAX_CACHE", str(root / "cache"))
        yield root


def start(folder: Path, out: Path, **settings) -> subprocess.Popen:
    settings = {"folder": str(folder), "host": 0, "hosts": 1, "workers": 0, "state": {"step": 0}, "steps": STEPS} | settings
    command = [sys.executable, str(ROOT / "tests" / "stream_of_keys.py"), json.dumps({**settings, "out": str(out)})]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    return subprocess.Popen(command, env=environment, start_new_session=True)


def lines(out: Path) -> list[dict]:
    """The whole ones."""
    text = out.read_text() if out.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill_after(child: subprocess.Popen, out: Path, step: int) -> None:
    while child.poll() is None and len(lines(out)) < step:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


@pytest.fixture(scope="module")
def reference(folder) -> list[dict]:
    """What one host without workers feeds."""
    iterator = pipeline.train_iterator(stream_of_keys.streams(folder), batch_size=stream_of_keys.BATCH, seed=7, threads=0)
    rows = [stream_of_keys.digests(next(iterator)) for _ in range(STEPS)]
    iterator.close()
    return rows


@pytest.mark.slow
def test_killed_in_mid_epoch_with_two_workers_the_stream_of_keys_goes_on(folder, reference, tmp_path):
    """R1 for the data: a mixture of three sources, documents and clips."""
    before, after = tmp_path / "before", tmp_path / "after"
    child = start(folder, before, workers=2)
    kill_after(child, before, 8)
    until = time.monotonic() + 20
    while left(child.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left(child.pid), "workers end with their process"
    kept = lines(before)[:7]  # as a checkpoint after seven steps
    assert start(folder, after, workers=2, state=kept[-1]["state"]).wait(200) == 0
    joined = [line["rows"] for line in kept[:-1] + lines(after)]
    assert joined == reference
    print(f"R1: killed after {len(lines(before))} batches with two workers; all {STEPS} of three streams equal to those of no worker")


@pytest.mark.slow
def test_what_two_hosts_began_four_go_on_with(folder, reference, tmp_path):
    """R7: rows by process index, across a kill."""
    two = [tmp_path / f"two-{host}" for host in range(2)]
    for host, child in enumerate([start(folder, out, host=host, hosts=2, workers=host) for host, out in enumerate(two)]):
        kill_after(child, two[host], 6)
    states = [lines(out)[5]["state"] for out in two]
    assert states[0] == states[1] == {"step": 5}
    four = [tmp_path / f"four-{host}" for host in range(4)]
    children = [start(folder, out, host=host, hosts=4, state=states[0]) for host, out in enumerate(four)]
    assert [child.wait(200) for child in children] == [0] * 4

    def joined(outs: list[Path], step: int) -> dict[str, list[str]]:
        parts = [lines(out)[step]["rows"] for out in outs]
        return {name: [row for part in parts for row in part[name]] for name in parts[0]}

    assert [joined(two, step) for step in range(5)] + [joined(four, step) for step in range(STEPS - 5)] == reference
    print(f"R7: two hosts killed after step 5, four went on: {STEPS} global batches of three streams equal to those of one host")
