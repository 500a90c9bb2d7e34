import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlm_jax.layers import embed


def test_rows_of_the_table_and_nan_outside_the_vocabulary():
    layer = embed.Embed(4, 3, embedding_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    out = layer(jnp.array([[0, 3], [1, 4]]))
    np.testing.assert_array_equal(out[0], layer.embedding[...][np.array([0, 3])])
    assert bool(jnp.isnan(out[1, 1]).all())
