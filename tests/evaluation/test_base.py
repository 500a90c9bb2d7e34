"""Embeddings of any number of examples, on any number of devices, with programs compiled once."""

import jax
import numpy as np
import pytest

from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base
from vlm_jax.training import sharding

MESHES = [(1, sharding.Mesh()), (8, sharding.Mesh()), (8, sharding.Mesh(data=2, fsdp=2, model=2))]


def pictures(count):
    rng = np.random.default_rng(count)
    return [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize(("devices", "mesh"), MESHES)
@pytest.mark.parametrize("count", [1, 7, 16, 33])
def test_embeddings_are_those_of_the_model_for_any_count_and_mesh(make_subject, devices, mesh, count):
    subject = make_subject(devices, batch_size=8, mesh=mesh)
    images = pictures(count)
    mean = np.stack(images).mean((1, 2)) / 250
    expected = np.concatenate([mean, np.full((count, 1), 0.3)], 1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = subject.embed_images(iter(images))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    texts = [f"photo of {'a ' * (i % 3)}red" for i in range(count)]
    one_by_one = np.concatenate([subject.embed_texts([text]) for text in texts])
    np.testing.assert_allclose(subject.embed_texts(texts), one_by_one, atol=1e-6)


def test_records_embed_as_their_images_do(make_subject, data):
    subject, source = make_subject(8), sources.open_source(data)
    images = [subject.transform(source[i]["image"]) for i in range(13)]
    np.testing.assert_array_equal(subject.embed_records(source, 13), subject.embed_images(images))


def test_each_method_is_compiled_once_for_a_run(make_subject):
    subject = make_subject(8, batch_size=16)
    for count in (5, 16, 40):
        subject.embed_images(pictures(count))
        subject.embed_texts(["a red"] * count)
    assert subject.compiled.compilations == 2
    doubled = jax.tree.map(lambda x: 2 * x, subject.variables)
    later = base.Subject(subject.compiled, doubled, subject.transform, subject.tokenizer, 16)
    later.embed_texts(["a red"])
    assert subject.compiled.compilations == 2
    other = base.Subject(subject.compiled, doubled, subject.transform, subject.tokenizer, 24)
    other.embed_texts(["a red"])
    assert subject.compiled.compilations == 3


def test_new_variables_give_new_embeddings_without_compiling(make_subject):
    subject = make_subject(1)
    before = subject.embed_texts(["a red"])
    shifted = jax.tree.map(lambda x: x + np.arange(4.0, dtype=np.float32) if x.ndim else x, subject.variables)
    later = base.Subject(subject.compiled, shifted, subject.transform, subject.tokenizer, 10)
    assert np.abs(later.embed_texts(["a red"]) - before).max() > 0.1
    assert subject.compiled.compilations == 1


def test_the_batch_is_split_over_all_devices(make_subject):
    subject = make_subject(8, batch_size=10)
    assert subject.batch_size == 16
    batch = sharding.put_batch({"x": np.zeros((16, 2), np.int32)}, subject.compiled.mesh)["x"]
    assert batch.addressable_shards[0].data.shape == (2, 2)


def test_every_row_is_read_by_exactly_one_of_several_processes(make_subject, monkeypatch):
    subject = make_subject(8, batch_size=8)
    read = []
    for process in range(4):
        own = np.arange(8)[2 * process : 2 * process + 2]
        monkeypatch.setattr(sharding, "rows", lambda batch_size, mesh, own=own: own)
        read.append(subject.rows(19))
    assert read[0] == [0, 1, 8, 9, 16, 17]
    assert sorted(i for rows in read for i in rows) == list(range(19))


def test_nothing_to_embed_is_refused(make_subject):
    with pytest.raises(InputError, match="captions: there is nothing to embed"):
        make_subject().embed_texts([], "captions")
    with pytest.raises(InputError, match="nothing to embed"):
        make_subject().embed_images([])


def test_an_image_of_another_shape_is_refused_by_name(make_subject):
    images = [*pictures(3), np.zeros((9, 8, 3), np.uint8)]
    with pytest.raises(InputError, match=r"example 3 has shape \(9, 8, 3\), the model takes \(8, 8, 3\)"):
        make_subject().embed_images(images)


def test_a_batch_size_that_is_not_positive_is_refused(make_subject):
    with pytest.raises(InputError, match="batch_size 0"):
        make_subject(batch_size=0)


def test_spread_takes_first_and_last_and_evenly_between():
    assert base.spread(np.arange(10), 4) == [0, 3, 6, 9]
    assert base.spread(np.array([5, 7]), 4) == [5, 7]
    assert base.spread(np.array([], int), 4) == []


def test_a_thumbnail_is_small_and_keeps_the_shape():
    wide = np.full((100, 300, 3), 200, np.uint8)
    data = base.thumbnail(wide, 60)
    assert data.startswith(b"\xff\xd8\xff") and len(data) < 2000
