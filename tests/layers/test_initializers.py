import jax
import jax.numpy as jnp
import pytest

from vlm_jax.layers import initializers

WIDTH, MLP, DEPTH = 256, 512, 4


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (
            initializers.big_vision(width=WIDTH),
            {
                "query_key_value": (WIDTH**-0.5, (WIDTH, WIDTH)),
                "up": ((2 / (WIDTH + MLP)) ** 0.5, (WIDTH, MLP)),
                "up_bias": (1e-6, (MLP,)),
                "patch": (192**-0.5, (192, WIDTH)),
                "positions": (WIDTH**-0.5, (64, WIDTH)),
                "class_token": (0, (1, WIDTH)),
            },
        ),
        (
            initializers.clip_text(width=WIDTH, depth=DEPTH, mlp_dim=MLP),
            {
                "embedding": (0.02, (100, WIDTH)),
                "positions": (0.01, (77, WIDTH)),
                "query_key_value": (WIDTH**-0.5, (WIDTH, WIDTH)),
                "out": ((2 * WIDTH * DEPTH) ** -0.5, (WIDTH, WIDTH)),
                "up": ((2 * WIDTH) ** -0.5, (WIDTH, MLP)),
                "down": ((2 * WIDTH * DEPTH) ** -0.5, (MLP, WIDTH)),
                "projection": (WIDTH**-0.5, (WIDTH, 64)),
            },
        ),
        (
            initializers.clip_image(width=WIDTH, mlp_dim=MLP),
            {
                "class_token": (WIDTH**-0.5, (8, WIDTH)),
                "positions": (WIDTH**-0.5, (64, WIDTH)),
                "query_key_value": ((1 / (2 * WIDTH)) ** 0.5, (WIDTH, WIDTH)),
                "up": ((3 * WIDTH) ** -0.5, (WIDTH, MLP)),
                "down": ((3 * MLP) ** -0.5, (MLP, WIDTH)),
                "patch": ((3 * 192) ** -0.5, (192, WIDTH)),
            },
        ),
    ],
    ids=["big_vision", "clip_text", "clip_image"],
)
def test_standard_deviations_are_the_published_ones(sets, expected):
    @jax.jit
    def deviations():
        return {n: getattr(sets, n)(jax.random.key(0), shape, jnp.float32).std() for n, (_, shape) in expected.items()}

    for name, deviation in deviations().items():
        assert float(deviation) == pytest.approx(expected[name][0], rel=0.08), name
