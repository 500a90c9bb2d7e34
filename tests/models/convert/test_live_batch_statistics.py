"""Two training steps of a modified ResNet keep the statistics that PyTorch's batch norm keeps; outputs and gradients follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from vlm_jax.models import resnet
from vlm_jax.models.convert import mapping, open_clip_resnet
from vlm_jax.training import tree

from .test_live_parity import torch  # noqa: F401 (a fixture)

CONFIG = resnet.Config(image_size=64, layers=(1, 2, 1, 1), width=8, num_heads=4, projection_dim=12)

pytestmark = pytest.mark.slow


def theirs(torch, weights, images):  # noqa: F811
    """CLIP's formulas over a dict in open_clip's names, whose running statistics PyTorch renews in place."""
    functional = torch.nn.functional

    def conv(x, name, norm, **more):
        x = functional.conv2d(x, weights[f"{name}.weight"], **more)
        own = [weights[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *own, training=True, momentum=0.1, eps=1e-5)

    x = images
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = conv(x, f"conv{i}", f"bn{i}", stride=stride, padding=1).relu()
    x = functional.avg_pool2d(x, 2)
    for stage, depth in enumerate(CONFIG.layers, 1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = conv(x, f"{name}.conv1", f"{name}.bn1").relu()
            y = conv(y, f"{name}.conv2", f"{name}.bn2", padding=1).relu()
            y = conv(functional.avg_pool2d(y, stride), f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                x = conv(functional.avg_pool2d(x, stride), f"{name}.downsample.0", f"{name}.downsample.1")
            x = (x + y).relu()
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + weights["attnpool.positional_embedding"][:, None]
    biases = torch.cat([weights[f"attnpool.{name}_proj.bias"] for name in "qkv"])
    kernels = {f"{name}_proj_weight": weights[f"attnpool.{name}_proj.weight"] for name in "qkv"}
    out = weights["attnpool.c_proj.weight"], weights["attnpool.c_proj.bias"]
    x, _ = functional.multi_head_attention_forward(
        x[:1], x, x, x.shape[-1], CONFIG.num_heads, None, biases, None, None, False, 0.0, *out,
        use_separate_proj_weight=True, need_weights=False, **kernels,
    )  # fmt: skip
    return x[0]


def test_two_steps_keep_the_statistics_of_pytorch(torch):  # noqa: F811
    with jax.enable_x64(True):
        graphdef, params, buffers = nnx.split(reference.filled(CONFIG), nnx.Param, ...)
        params, buffers = (jax.tree.map(lambda x: x.astype(jnp.float64), nnx.to_pure_dict(part)) for part in (params, buffers))
        buffers = tree.map_paths(lambda path, x: jnp.abs(x) if path.endswith("variance") else x, buffers)
        table = open_clip_resnet.table(CONFIG)
        ours = tree.flatten(tree.join(params, buffers))
        weights = {name: torch.tensor(x) for name, x in mapping.to_theirs(table, jax.tree.map(np.asarray, ours)).items()}
        trained = {name: x.requires_grad_() for name, x in weights.items() if "running" not in name}

        @jax.jit
        def step(params, buffers, images):
            def loss(params):
                y, new = nnx.merge(graphdef, tree.join(params, buffers)).with_batch_statistics(images)
                return jnp.sum(jnp.sin(y)), (y, new)

            (_, (y, new)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            return y, tree.join(buffers, new), gradients

        for seed in range(2):
            images = np.random.default_rng(seed).standard_normal((6, 64, 64, 3))
            y, buffers, gradients = step(params, buffers, images)
            expected = theirs(torch, weights, torch.tensor(images.transpose(0, 3, 1, 2)))
            np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-8, atol=1e-8)
        expected.sin().sum().backward()
        found = mapping.to_theirs(table, jax.tree.map(np.asarray, tree.flatten(tree.join(gradients, buffers))))
        for name, x in weights.items():
            want = (x.grad if name in trained else x).numpy()
            np.testing.assert_allclose(found[name], want, rtol=1e-6, atol=1e-8 * max(np.abs(want).max(), 1), err_msg=name)
