"""Batches of workers lie in shared memory, which nothing is left of."""

import subprocess
import sys
import textwrap
from multiprocessing import shared_memory

import numpy as np
import pytest
from grain import multiprocessing

from vlm_jax.data import handover

IMAGES = (4, 128, 128, 3), np.dtype(np.uint8)


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setattr(handover, "_kept", None)
    monkeypatch.setattr(handover.util, "Finalize", lambda *args, **options: None)
    handover.start()


def test_only_a_worker_makes_shared_memory_and_only_for_what_is_large(worker, monkeypatch):
    assert isinstance(handover.empty(*IMAGES), multiprocessing.SharedMemoryArray)
    assert type(handover.empty((4,), np.dtype(np.int32))) is np.ndarray
    handover._free()
    monkeypatch.setattr(handover, "_kept", None)
    assert type(handover.empty(*IMAGES)) is np.ndarray


def test_what_was_not_handed_over_is_freed(worker):
    gone, left = (handover.empty(*IMAGES) for _ in range(2))
    assert isinstance(gone, multiprocessing.SharedMemoryArray) and isinstance(left, multiprocessing.SharedMemoryArray)
    made = {"pairs": {"image": gone, "example": np.arange(4)}}, ()
    assert handover.hand_over(made) is made
    handover._free()
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(left.metadata.name)
    again = multiprocessing.SharedMemoryArray.from_metadata(gone.metadata)
    again.unlink_on_del()


def test_an_iterator_that_is_closed_early_leaves_nothing(tiny_world, tmp_path):
    """Workers have read ahead by then; Python tells what is left of shared memory when a process ends."""
    script = tmp_path / "read.py"
    script.write_text(
        textwrap.dedent(f"""
        import numpy as np
        from vlm_jax.data import images, pipeline, text

        if __name__ == "__main__":
            tokenizer = text.Tokenizer("{tiny_world}/tokenizer.model", 24)
            pairs = pipeline.Pairs("{tiny_world}/train*", "", tokenizer, images.Transform(size=64))
            found = []
            for workers in (0, 2):
                iterator = pipeline.train_iterator({{"pairs": pairs}}, batch_size=16, seed=0, workers=workers)
                print(type(next(iterator)["pairs"]["image"]).__name__)
                found.append([{{name: np.array(x) for name, x in next(iterator)["pairs"].items()}} for _ in range(3)])
                iterator.close()
            for one, other in zip(*found):
                assert all(np.array_equal(one[name], other[name]) for name in one)
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ndarray", "SharedMemoryArray"]
    assert "leaked" not in done.stderr
