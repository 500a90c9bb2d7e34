"""The Perceiver resampler against the oracle of the Flamingo card, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from vlm_jax.errors import InputError
from vlm_jax.models import resampler

FIELDS = {"width": 8, "latents": 3, "depth": 2, "num_heads": 2, "head_dim": 4, "mlp_dim": 32, "loop": "unroll"}


def weights(oracle, frames):
    norm = lambda name: {"scale": oracle[f"W_{name}_g"], "bias": oracle[f"W_{name}_b"]}  # noqa: E731
    kernel = lambda i, name: {"kernel": oracle[f"W_l{i}_{name}"]}  # noqa: E731
    blocks = [
        {
            "features_norm": norm(f"l{i}_ln_media"),
            "latents_norm": norm(f"l{i}_ln_lat"),
            "attention": {"query": kernel(i, "Wq"), "key": kernel(i, "Wk"), "value": kernel(i, "Wv"), "out": kernel(i, "Wo")},
            "mlp_norm": norm(f"l{i}_ff_ln"),
            "mlp": {"up": kernel(i, "W1"), "down": kernel(i, "W2")},
        }
        for i in range(2)
    ]
    times = {"frame_embed": oracle["W_time_embed"]} if frames else {}
    return times | {"latents": oracle["W_latents"], "blocks": jax.tree.map(lambda *x: np.stack(x), *blocks), "norm": norm("norm")}


class Build:
    """As a tower's configuration: without the width of the features."""

    def __init__(self, config):
        self.config = config

    def build(self, *, rngs):
        return self.config.build(8, rngs=rngs)


@pytest.mark.parametrize(
    ("activation", "known"), [("squared_relu", "relu2"), *(pytest.param(name, name, marks=pytest.mark.slow) for name in ("relu", "gelu"))]
)
def test_computes_what_the_oracle_says_of_images_and_clips(oracles, activation, known):
    with np.load(oracles / "flamingo_layers.npz") as oracle:
        for frames in (0, 2):
            config = resampler.Config(**FIELDS, activation=activation, frames=frames)
            model = reference.build(Build(config), weights(oracle, frames))
            image, clip = (jnp.asarray(oracle[f"{name}_feats"], jnp.float32) for name in ("img", "vid"))
            visual = jax.jit(model)(image[None, None])
            name = f"img_time0_{known}" if frames else f"img_noTime_{known}"
            np.testing.assert_allclose(visual[0], oracle[name], atol=1e-5)
            if frames:
                np.testing.assert_allclose(jax.jit(model)(clip[None])[0], oracle[f"vid_{known}"], atol=1e-5)


@pytest.mark.parametrize("method", ["align_corners", "half_pixel"])
def test_more_frames_than_were_learned_get_embeddings_between_them(oracles, method):
    with np.load(oracles / "flamingo_layers.npz") as oracle:
        made = resampler.interpolate(jnp.asarray(oracle["te8"], jnp.float32), 30, method)
        np.testing.assert_allclose(made, oracle[f"te30_{method}"], atol=1e-5)
        one = resampler.interpolate(jnp.ones((1, 4)), 3, method)
        np.testing.assert_array_equal(one, np.ones((3, 4)))


def test_a_longer_clip_is_taken_and_features_of_another_width_are_projected():
    config = resampler.Config(**FIELDS, frames=2, remat="names")
    model = config.build(6, rngs=nnx.Rngs(0))
    assert model.input.kernel[...].shape == (6, 8) and not hasattr(model.input, "bias")
    five = jax.random.normal(jax.random.key(0), (2, 5, 4, 6))
    visual = jax.jit(model)(five)
    assert visual.shape == (2, 3, 8) and np.isfinite(visual).all()
    assert np.abs(visual - jax.jit(model)(five[:, ::-1])).max() > 1e-4  # the order of frames tells


def test_sizes_that_make_no_resampler_are_refused():
    with pytest.raises(InputError, match="latents 0"):
        resampler.Config(**FIELDS | {"latents": 0})
    with pytest.raises(InputError, match="frames -1"):
        resampler.Config(**FIELDS, frames=-1)
