"""Small files: whole before and after, and nothing left beside them."""

import os

import pytest

from vlm_jax import files


def test_the_new_content_stands_alone(tmp_path):
    files.write_text(tmp_path / "a", "old")
    files.write_text(tmp_path / "a", "new \ud800")
    assert (tmp_path / "a").read_bytes() == b"new ?" and os.listdir(tmp_path) == ["a"]


def test_where_the_disk_refuses_the_old_content_stays(tmp_path, monkeypatch):
    files.write(tmp_path / "a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]
