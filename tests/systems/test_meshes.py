"""Systems with several losses or streams give on every mesh the loss, the metrics and the gradients of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_coca
import test_flamingo
import test_language_model
from flax import nnx

from tests.models import reference
from vlm_jax.systems import base
from vlm_jax.training import sharding

SLOW = pytest.mark.slow


def repeated(batch, times):
    """The rows of every stream so many times: enough for eight devices."""
    return jax.tree.map(lambda x: np.concatenate([np.asarray(x)] * times), batch)


def texts():
    pieces = test_language_model.pieces
    rows = test_language_model.batch_of(*[pieces(row, *((12,) if row % 2 else (5, 4))) for row in range(4)])
    return {"texts": repeated(rows, 2)}


def pages_and_pairs():
    return {name: repeated(stream, 4) for name, stream in test_flamingo.batch().items() if name != "video"}


SYSTEMS = {
    "coca": (test_coca.SYSTEM, lambda: test_coca._batch(8)),
    "flamingo": (test_flamingo.SYSTEM, pages_and_pairs),
    "language_model": (test_language_model.SYSTEM, texts),
}


def outputs(name, mesh):
    """Loss, metrics and gradients, in float64."""
    system, batch = SYSTEMS[name]
    with jax.enable_x64(True), jax.set_mesh(mesh):
        graphdef, params, rest = nnx.split(reference.filled(system), nnx.Param, ...)
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), nnx.to_pure_dict(params))
        if name == "flamingo":
            params["cross"]["blocks"]["attention_gate"] = jnp.full(1, 0.5, jnp.float64)

        def loss(params, batch):
            zero = jnp.zeros(())
            context = base.Context(jax.random.key(0), zero, zero, zero, 1)
            found = system.objective(nnx.merge(graphdef, params, rest), batch, {}, context)
            return found.loss, found.metrics

        shardings = sharding.shardings(params, mesh)
        grad = jax.jit(jax.value_and_grad(loss, has_aux=True), in_shardings=(shardings, None), out_shardings=(None, shardings))
        return jax.device_get(grad(jax.device_put(params, shardings), sharding.put_batch(batch(), mesh)))


@pytest.fixture(scope="module", params=["coca", pytest.param("flamingo", marks=SLOW), pytest.param("language_model", marks=SLOW)])
def of_one_device(request):
    return request.param, outputs(request.param, sharding.Mesh().make(jax.devices()[:1]))


@pytest.mark.parametrize("sizes", [pytest.param((8, 1, 1), marks=SLOW), pytest.param((2, 4, 1), marks=SLOW), (2, 2, 2)], ids=str)
def test_a_mesh_gives_the_loss_and_the_gradients_of_one_device(of_one_device, sizes):
    name, ((want, want_metrics), want_gradients) = of_one_device
    mesh = sharding.Mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2]).make()
    (loss, metrics), gradients = outputs(name, mesh)
    np.testing.assert_allclose(loss, want, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), metrics, want_metrics)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        assert np.abs(a - b).max() <= 1e-9 * max(np.abs(b).max(), 1e-2)
    if name == "coca":
        assert metrics["contrastive"] > 0 and metrics["caption"] > 0
