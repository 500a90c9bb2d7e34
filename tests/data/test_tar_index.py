import os

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.data import tar_index


@pytest.fixture
def members(encode_image, noise):
    image = encode_image(noise(0, 4, 4))
    return [item for i in range(20) for item in ((f"{i:03d}.png", image), (f"{i:03d}.txt", b"caption %d" % i))]


def spans(path: str) -> dict[str, list[bytes]]:
    """Key to the bytes of its image and text, by the table's offsets."""
    data = open(path, "rb").read()
    return {
        tar_index.key(e): [data[e[f"{k}_start"] :][: e[f"{k}_size"]] for k in ("image", "txt", "json", "cls")]
        for e in tar_index.load(path)
    }


def test_offsets_point_at_the_members(tmp_path, write_tar, members):
    table = spans(write_tar(tmp_path / "a.tar", members))
    assert list(table) == [f"{i:03d}" for i in range(20)]
    assert table["007"] == [members[14][1], b"caption 7", b"", b""]


def test_keys_end_at_the_first_dot_of_the_base_name(tmp_path, write_tar):
    names = ["a.b/c.d/x.jpg", "a.b/c.d/x.txt", "./y.JPEG", "./y.json", "z.jpg", "z.cls", "k.seg.png", "k.seg.txt", "k.jpg", "k.txt"]
    table = spans(write_tar(tmp_path / "a.tar", [(n, n.encode()) for n in names]))
    assert table == {
        "a.b/c.d/x": [b"a.b/c.d/x.jpg", b"a.b/c.d/x.txt", b"", b""],
        "./y": [b"./y.JPEG", b"", b"./y.json", b""],
        "z": [b"z.jpg", b"", b"", b"z.cls"],
        "k": [b"k.jpg", b"k.txt", b"", b""],
    }


def test_names_that_climb_out_are_names_only(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("../../evil.jpg", b"i"), ("../../evil.txt", b"t"), ("/etc/x.jpg", b"j"), ("/etc/x.txt", b"u")])
    before = sorted(p for p in tmp_path.parent.rglob("*") if "cache" not in p.parts)
    assert spans(path)["../../evil"][:2] == [b"i", b"t"]
    assert spans(path)["/etc/x"][:2] == [b"j", b"u"]
    assert sorted(p for p in tmp_path.parent.rglob("*") if "cache" not in p.parts) == before


def test_long_and_foreign_names_are_whole(tmp_path, write_tar):
    long, foreign = "f/" * 80 + "x" * 120, "\u5317\u4eac/\u732b"
    table = spans(write_tar(tmp_path / "a.tar", [(f"{n}.{e}", e.encode()) for n in (long, foreign) for e in ("jpg", "txt")]))
    assert list(table) == [long, foreign]


def test_hidden_files_and_folders_are_left_out(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("._x.jpg", b"mac"), (".DS_Store", b""), ("x.jpg", b"i"), ("x.txt", b"t")])
    assert list(spans(path)) == ["x"]


def test_keys_without_a_partner_are_left_out_and_reported(tmp_path, write_tar, members, caplog):
    path = write_tar(tmp_path / "a.tar", [*members[:-1], ("lone.txt", b"t")])
    assert len(tar_index.load(path)) == 19
    assert "2 of 21 keys lack an image or its text and are left out, first 019" in caplog.text


@pytest.mark.parametrize("cut", [1, 5, 10, 19])
def test_a_tar_cut_at_the_end_of_a_member_is_noticed(tmp_path, write_tar, members, cut):
    path = write_tar(tmp_path / "a.tar", members)
    os.truncate(path, cut * 1024 * 2)
    with pytest.raises(errors.InputError, match=r"a\.tar: truncated: \d+ members and \d+ bytes, but no end of archive"):
        tar_index.load(path)


@pytest.mark.parametrize("cut", [300, 512, 700, 10_000, 10_300, 10_600, 40_000])
def test_a_tar_cut_anywhere_is_noticed(tmp_path, write_tar, members, cut):
    path = write_tar(tmp_path / "a.tar", members)
    os.truncate(path, cut)
    with pytest.raises(errors.InputError, match="truncated"):
        tar_index.load(path)


def test_a_tar_cut_after_it_was_indexed_is_noticed(tmp_path, write_tar, members):
    path = write_tar(tmp_path / "a.tar", members)
    assert len(tar_index.load(path)) == 20
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(errors.InputError, match="truncated"):
        tar_index.load(path)


def test_a_copy_that_broke_off_in_a_file_of_full_size_is_noticed(tmp_path, write_tar, members):
    """A copy program that reserves the space first leaves zeros, which look like the end of an archive."""
    path = write_tar(tmp_path / "a.tar", [*members, ("last.png", bytes(3 * 2**20))])
    size = os.path.getsize(path)
    os.truncate(path, 20 * 1024)
    os.truncate(path, size)
    with pytest.raises(errors.InputError, match=r"a\.tar: \d+ bytes follow the end of its 20 members: an unfinished copy"):
        tar_index.load(path)


def test_two_tars_in_one_file_are_refused(tmp_path, write_tar, members):
    first, second = (write_tar(tmp_path / name, part) for name, part in (("a.tar", members[:20]), ("b.tar", members[20:])))
    with open(first, "ab") as file:
        file.write(open(second, "rb").read())
    with pytest.raises(errors.InputError, match="another archive follows the end of its 20 members"):
        tar_index.load(first)


def test_what_is_no_tar_says_why(tmp_path, write_tar):
    for name, content, message in (
        ("empty.tar", b"", "an empty file"),
        ("text.tar", b"hello " * 1000, "truncated or not a tar"),
        ("gz.tar", b"\x1f\x8b\x08" + bytes(600), "compressed; unpack it"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.InputError, match=f"{name}: {message}"):
            tar_index.load(str(tmp_path / name))
    with pytest.raises(errors.InputError, match="none of its 0 members make an example"):
        tar_index.load(write_tar(tmp_path / "none.tar", []))
    with pytest.raises(errors.InputError, match="none of its 2 members make an example"):
        tar_index.load(write_tar(tmp_path / "other.tar", [("a.mp", b"1"), ("b.mp", b"2")]))


def test_a_key_with_two_images_is_refused(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.txt", b"t"), ("x.png", b"2")])
    with pytest.raises(errors.InputError, match="x has two members of kind image"):
        tar_index.load(path)


def test_an_index_is_made_once_and_again_after_a_change(tmp_path, write_tar, members, monkeypatch):
    built = []
    build = tar_index.build
    monkeypatch.setattr(tar_index, "build", lambda path: built.append(path) or build(path))
    path = write_tar(tmp_path / "a.tar", members)
    first = tar_index.load(path)
    np.testing.assert_array_equal(tar_index.load(path), first)
    assert len(built) == 1
    write_tar(path, members[2:])
    assert len(tar_index.load(path)) == 19
    assert len(built) == 2


def test_a_damaged_or_unwritable_cache_is_no_obstacle(tmp_path, write_tar, members, cache, monkeypatch, caplog):
    path = write_tar(tmp_path / "a.tar", members)
    tar_index.load(path)
    (index,) = cache.rglob("*.index")
    index.write_bytes(index.read_bytes()[:100])
    assert len(tar_index.load(path)) == 20
    monkeypatch.setenv("VLM_JAX_CACHE", path)
    assert len(tar_index.load(path)) == 20
    assert "cannot be kept" in caplog.text


def test_processes_index_many_tars_and_leave_the_damaged_one_to_say_why(tmp_path, write_tar, members, cache, monkeypatch):
    monkeypatch.setattr(tar_index, "_FEW", 0)
    paths = [write_tar(tmp_path / f"{i}.tar", members) for i in range(3)]
    os.truncate(paths[1], 9000)
    tar_index.prepare(paths)
    assert len(list(cache.rglob("*.index"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "build", lambda path: pytest.fail(f"{path} was indexed by a process"))
        assert len(tar_index.load(paths[0])) == len(tar_index.load(paths[2])) == 20
    with pytest.raises(errors.InputError, match=r"1\.tar: truncated"):
        tar_index.load(paths[1])
