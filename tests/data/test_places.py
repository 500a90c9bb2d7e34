"""Places behind a network, played by fsspec's store in memory."""

import pickle

import fsspec
import pytest

from vlm_jax import errors
from vlm_jax.data import places, sources


def fill(store, name, data):
    with store.open(name, "wb") as file:
        file.write(data)


@pytest.fixture
def store(pair_tars):
    """The pairs of two tars, in memory://pairs."""
    memory = fsspec.filesystem("memory")
    for path in sources.expand(pair_tars):
        with open(path, "rb") as file:
            fill(memory, f"/pairs/{path.rpartition('/')[2]}", file.read())
    yield memory
    memory.store.clear()


@pytest.mark.parametrize("pattern", ["pairs-{00000..00001}.tar", "pairs-*.tar", "pairs-00000.tar::memory://pairs/pairs-00001.tar"])
def test_remote_tars_are_the_local_ones(store, pair_tars, pattern):
    local, remote = sources.open_source(pair_tars), sources.open_source(f"memory://pairs/{pattern}")
    assert [remote[i] for i in range(len(remote))] == [local[i] for i in range(len(local))]
    assert remote.fingerprint == local.fingerprint
    assert remote.where(30).endswith("pairs/pairs-00001.tar: 00030")
    assert pickle.loads(pickle.dumps(remote))[30] == local[30]


def test_one_request_brings_an_example_and_the_index_is_kept(store, monkeypatch):
    source = sources.open_source("memory://pairs/pairs-00000.tar")
    asked, cat, opened = [], type(store).cat_file, []
    monkeypatch.setattr(type(store), "cat_file", lambda self, *args, **named: asked.append(args) or cat(self, *args, **named))
    monkeypatch.setattr(places, "opened", lambda path: opened.append(path))
    source[3]
    assert len(asked) == 1
    assert len(sources.open_source("memory://pairs/pairs-00000.tar")) == 23 and not opened


def test_a_remote_tar_that_is_cut_is_noticed_and_one_that_changes_is_read_anew(store):
    whole = store.cat("/pairs/pairs-00001.tar")
    assert len(sources.open_source("memory://pairs/pairs-00001.tar")) == 14
    fill(store, "/pairs/pairs-00001.tar", whole[: len(whole) // 2])
    with pytest.raises(errors.InputError, match=r"memory://pairs/pairs-00001\.tar: truncated: \d+ members"):
        sources.open_source("memory://pairs/pairs-00001.tar")
    fill(store, "/pairs/pairs-00001.tar", store.cat("/pairs/pairs-00000.tar"))
    assert len(sources.open_source("memory://pairs/pairs-00001.tar")) == 23


@pytest.mark.parametrize(
    "pattern,message",
    [
        ("memory://pairs/pairs-00007.tar", r"train memory://pairs/pairs-00007\.tar: does not exist"),
        ("memory://pairs/none-*.tar", "matches no file"),
        ("nowhere://pairs/a.tar", "nowhere://: Protocol not known: nowhere; the packages are gcsfs for gs://"),
        ("memory://pairs/a.npz", "arrays are read from disks only"),
        ("memory://pairs/a.array_record", "ArrayRecord shards are read from disks only"),
    ],
)
def test_what_cannot_be_had_is_one_line(store, pattern, message):
    for name in ("a.npz", "a.array_record"):
        fill(store, f"/pairs/{name}", b"x")
    with pytest.raises(errors.InputError, match=message) as error:
        sources.open_source(pattern, "train")
    assert "\n" not in str(error.value)


def test_a_store_without_rights_is_one_line_and_one_that_fails_later_is_no_bad_record(store, monkeypatch):
    class Refused(Exception):
        """As packages of stores have them."""

    def refuse(self, *_, **__):
        raise Refused("Anonymous caller does not have storage.objects.get")

    source = sources.open_source("memory://pairs/pairs-00000.tar")
    monkeypatch.setattr(type(store), "cat_file", refuse)
    with pytest.raises(errors.InfrastructureError, match=r"pairs-00000\.tar: 00003: cannot be read \(.*Refused: Anonymous"):
        source[3]
    with monkeypatch.context() as patch:
        patch.setattr(places, "version", lambda path: "another")
        patch.setattr("fsspec.implementations.memory.MemoryFile.read", refuse, raising=False)
        with pytest.raises(errors.InputError, match=r"pairs-00000\.tar: cannot be read \(Refused: Anonymous"):
            sources.open_source("memory://pairs/pairs-00000.tar")
    monkeypatch.setattr(type(store), "info", refuse)
    with pytest.raises(errors.InputError, match=r"data memory://pairs/pairs-00000\.tar: cannot be reached \(Refused: Anonymous"):
        sources.open_source("memory://pairs/pairs-00000.tar")
