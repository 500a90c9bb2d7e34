"""Flamingo: what each stream is read as, the weighted loss of all of them, and frozen parts that cost nothing but their own bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from vlm_jax.data import pipeline
from vlm_jax.errors import InputError
from vlm_jax.layers import gated_cross_attention
from vlm_jax.models import lm, resampler, vit
from vlm_jax.systems import base, flamingo
from vlm_jax.training import checkpoint, step, tree
from vlm_jax.training import state as states
from vlm_jax.training.optimizer import AdamW

SYSTEM = flamingo.Flamingo(
    image=vit.Config(image_size=8, patch_size=4, width=8, depth=1, mlp_dim=16, num_heads=2, pool="none", loop="unroll"),
    lm=lm.Config(vocab_size=30, length=12, width=16, depth=1, mlp_dim=32, num_heads=2, loop="unroll"),
    resampler=resampler.Config(width=8, latents=2, depth=1, num_heads=2, head_dim=4, mlp_dim=16, frames=2, loop="unroll"),
    cross=gated_cross_attention.Config(num_heads=2, head_dim=4, mlp_dim=16),
    weights={"pages": 1.0, "pairs": 0.5, "video": 0.25},
    end_id=1,
)
IMAGE, END = 30, 31
DATA = pipeline.Description(
    vocab_size=30, length=6, bos_id=None, eos_id=1, pad_id=0, image_size=8, train_records=10, val_records=2, fingerprint=""
)


def batch():
    rng = np.random.default_rng(0)
    pixels = lambda *shape: rng.integers(0, 256, (*shape, 8, 8, 3), np.uint8)  # noqa: E731
    text = np.array([[5, 6, 7, 1, 0, 0], [8, 9, 4, 3, 2, 6]], np.int32)
    rows = {
        "tokens": [[4, 5, IMAGE, 6, END, IMAGE, 7, END], [IMAGE, 8, 9, END, 4, IMAGE, 5, 0]],
        "segments": [[1] * 8, [1, 1, 1, 1, 2, 2, 2, 0]],
        "positions": [[*range(8)], [0, 1, 2, 3, 0, 1, 2, 0]],
        "image_index": [[0, 0, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 2, 2, 0]],
        "image_segments": [[1, 1], [1, 2]],
        "example": [0, 1],
    }
    pages = {name: np.array(values, np.int32) for name, values in rows.items()}
    pages |= {"loss_weights": np.array([[0, 1, 0, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 0, 1, 0]], np.float32), "images": pixels(2, 2)}
    return {
        "pages": pages,
        "pairs": {"image": pixels(2), "tokens": text, "example": np.arange(2, dtype=np.int32)},
        "video": {"frames": pixels(2, 3), "tokens": text, "example": np.arange(2, dtype=np.int32)},
    }


def context(microbatches=1):
    return base.Context(jax.random.key(0), jnp.int32(0), jnp.int32(10), jnp.float32(1), microbatches)


def model():
    made = reference.filled(SYSTEM)
    made.cross.blocks.attention_gate[...] = jnp.full(1, 0.5)
    return made


def test_a_pair_is_its_image_then_its_text_and_the_end_of_a_chunk():
    pairs = batch()["pairs"]
    read = SYSTEM.texts(pairs)
    assert read.tokens.tolist() == [[IMAGE, 5, 6, 7, END, 0, 0], [IMAGE, 8, 9, 4, 3, 2, 6]]
    assert read.weights.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]
    assert read.index.tolist() == [[1] * 7] * 2 and read.pixels.shape == (2, 1, 1, 8, 8, 3)
    pairs["tokens"] = np.array([[1, 6, 7, 1, 0, 0]] * 2, np.int32)
    begun = dataclasses.replace(SYSTEM, begin_id=1).texts(pairs)
    assert begun.tokens[0].tolist() == [1, IMAGE, 6, 7, END, 0, 0] and begun.weights[0].tolist() == [0, 1, 1, 1, 0, 0, 0]
    assert begun.index[0].tolist() == [0, 1, 1, 1, 1, 1, 1]


TARGETS = jnp.arange(8)[None] >= jnp.array([[6], [3]])


def log_p(logits, tokens):
    """Of each token after the first."""
    found = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    return jnp.take_along_axis(found, tokens[:, 1:, None], axis=-1)[..., 0]


@pytest.mark.parametrize("added", ["image_first", "end_first"])
@pytest.mark.parametrize("tokens", [0, 12])
def test_pages_number_added_tokens_after_the_tokenizer_and_the_model_after_its_rows(added, tokens):
    pages = {"pages": dataclasses.replace(DATA, vocab_size=tokens or 30, length=12, image_id=tokens or 30)}
    system, own = dataclasses.replace(SYSTEM, added=added, tokens=tokens), tokens or 30
    system.check(pages)
    stream = batch()["pages"]
    stream["tokens"] = np.where(stream["tokens"] < 30, stream["tokens"], stream["tokens"] - 30 + own)
    first, second = (IMAGE, END) if added == "image_first" else (END, IMAGE)
    assert system.texts(stream).tokens[0].tolist() == [4, 5, first, 6, second, first, 7, second]
    with pytest.raises(InputError, match=r"not the 29 of the tokenizer of pages, .*--system\.lm\.vocab-size 29"):
        system.check({"pages": dataclasses.replace(pages["pages"], vocab_size=29)})


def test_the_loss_is_the_weighted_sum_of_the_means_of_the_streams_and_candidates_are_weighed_by_the_same_logits():
    graphdef, params = nnx.split(model())

    @jax.jit
    def outputs(params, batch):
        made, wanted = nnx.merge(graphdef, params), {}
        objective = SYSTEM.objective(made, batch, {}, context())
        for name, stream in batch.items():
            texts = SYSTEM.texts(stream)
            images = texts.pixels.shape[1]
            visual = made.resampled(made.features(texts.pixels.reshape(-1, *texts.pixels.shape[2:])), images)
            logits = made.logits(made.hidden(visual, texts.tokens, index=texts.index, positions=texts.positions, segments=texts.segments))
            chosen = log_p(logits, texts.tokens)
            weights = texts.weights[:, :-1]
            wanted[name] = -(chosen * weights).sum() / weights.sum()
        images, tokens = batch["pages"]["images"], batch["pages"]["tokens"]
        said = made.log_likelihood(images, tokens, TARGETS)
        wanted_said = log_p(made(images, tokens), tokens)
        return objective.loss, objective.metrics, wanted, said, jnp.sum(wanted_said, axis=1, where=TARGETS[:, 1:])

    loss, metrics, wanted, said, wanted_said = outputs(params, {name: stream for name, stream in batch().items() if name != "pairs"})
    for name, mean in wanted.items():
        np.testing.assert_allclose(metrics[f"loss/{name}"], mean, rtol=1e-5)
    np.testing.assert_allclose(loss, wanted["pages"] + 0.25 * wanted["video"], rtol=1e-5)
    np.testing.assert_allclose(said, wanted_said, rtol=1e-5)


@pytest.mark.slow
def test_chunks_change_neither_loss_nor_gradients():
    graphdef, params = nnx.split(model())

    @jax.jit
    def outputs(params, batch):
        def loss(params, microbatches):
            return SYSTEM.objective(nnx.merge(graphdef, params), batch, {}, context(microbatches)).loss

        return [jax.value_and_grad(loss)(params, microbatches) for microbatches in (1, 2)]

    (whole, gradients), (in_chunks, of_chunks) = outputs(params, batch())
    np.testing.assert_allclose(in_chunks, whole, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients, of_chunks)


def size(part):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part))


def count(part):
    return sum(x.size for x in jax.tree.leaves(part))


def test_frozen_parts_take_two_bytes_a_parameter_and_trained_ones_twelve():
    whole, optimizer = states.Model.of(SYSTEM), AdamW()
    transform = optimizer.transform(optimizer.rate(10, 2, None))
    state = jax.eval_shape(lambda: states.init(whole, transform, optimizer.average(), seed=0, frozen_dtype=jnp.bfloat16))
    assert {path.split("/")[0] for path in tree.flatten(state["frozen"])} == {"image", "lm"}
    assert size(state["frozen"]) == 2 * count(state["frozen"]) > 0 and size(state["params"]) == 4 * count(state["params"])
    assert 0 <= size(state["opt_state"]) - 2 * size(state["params"]) < 64  # and a few counters


@pytest.mark.slow
def test_frozen_parts_stay_bit_for_bit_and_are_written_once(tmp_path):
    whole, optimizer = states.Model.of(SYSTEM), AdamW(learning_rate=1e-2, warmup=0, weight_decay=0.5)
    transform = optimizer.transform(optimizer.rate(10, 2, None))
    train_step = jax.jit(step.make(whole, transform, optimizer.average(), dtype=jnp.float32, seed=0, total_steps=10, steps_per_epoch=1.0))
    first = jax.jit(lambda: states.init(whole, transform, optimizer.average(), seed=0, frozen_dtype=jnp.bfloat16))()
    state, pages = first, {"pages": batch()["pages"]}
    for _ in range(2):
        state, metrics = train_step(state, pages)
    jax.tree.map(np.testing.assert_array_equal, state["frozen"], first["frozen"])
    moved = tree.flatten(jax.tree.map(lambda a, b: bool((a != b).any()), state["params"], first["params"]))
    assert moved["cross/blocks/attention_gate"] and moved["added_embed/embedding"] and moved["added_head/kernel"]
    assert metrics["gate/attention"] > 0
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    for number in (1, 2):
        checkpoints.save(number, state, {})
    checkpoints.close()
    for number in (1, 2):
        kept = checkpoint.ocp.checkpointables_metadata(tmp_path / "checkpoints" / str(number)).metadata
        assert {"image", "lm"}.isdisjoint(kept["params"])
    assert (tmp_path / "frozen").is_dir()


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"other": DATA}, r"data stream other: system\.weights has pages, pairs, video"),
        ({"pairs": dataclasses.replace(DATA, vocab_size=29)}, r"system\.lm\.vocab_size 30 is not the 29 .*or --system\.tokens 29"),
        ({"pairs": dataclasses.replace(DATA, length=12)}, r"data\.pairs\.tokenizer\.length 12: with the image's token more than .* 12"),
        ({"pairs": dataclasses.replace(DATA, image_size=16)}, r"data\.pairs\.image\.size 16 is not system\.image\.image_size 8"),
        ({"pairs": dataclasses.replace(DATA, eos_id=2)}, r"system\.begin_id None, system\.end_id 1: the tokenizer of pairs has None and 2"),
    ],
)
def test_data_that_do_not_fit_are_refused(streams, message):
    SYSTEM.check({"pages": dataclasses.replace(DATA, length=12, image_id=30, chunk_end_id=31, eos_id=7)})
    with pytest.raises(InputError, match=message):
        SYSTEM.check(streams)


def test_a_negative_weight_is_refused():
    with pytest.raises(InputError, match=r"system\.weights\.pages -1"):
        dataclasses.replace(SYSTEM, weights={"pages": -1.0})
