"""Twelve steps of AdamW on a CLIP of transformers and on its import follow one another: losses, parameters, the clamped scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import imported
from vlm_jax.models.convert import pretrained
from vlm_jax.training import optimizer, sharding, tree
from vlm_jax.training import state as states
from vlm_jax.training import step as steps

from .test_live_parity import END, LENGTH, model_of, torch  # noqa: F401 (a fixture)

STEPS, BATCH, WARMUP, PEAK, DECAY, NORM = 12, 8, 3, 3e-3, 0.2, 1.0
BETAS, EPSILON = (0.9, 0.98), 1e-6
NOT_DECAYED = ("bias", "norm", "layrnorm", "position_embedding", "class_embedding", "logit_scale")

pytestmark = pytest.mark.slow


def batches():
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        tokens = rng.integers(0, END - 1, (BATCH, LENGTH))
        tokens[np.arange(BATCH), rng.integers(1, LENGTH, BATCH)] = END
        yield rng.standard_normal((BATCH, 3, 32, 32)), tokens


def rate(step):
    """Linear from zero over the warm-up, then half a cosine to zero."""
    return PEAK * step / WARMUP if step < WARMUP else PEAK * 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP)))


def theirs(torch, model, dtype):  # noqa: F811
    """PyTorch's own AdamW with the groups of open_clip: what is one-dimensional is not decayed, nor tables of positions."""
    model = model.to(dtype).train()
    named = list(model.named_parameters())
    kept = [p for name, p in named if any(part in name for part in NOT_DECAYED)]
    decayed = [p for name, p in named if not any(part in name for part in NOT_DECAYED)]
    assert kept and decayed
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": kept, "weight_decay": 0.0}]
    adam, losses, clipped = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, eps=EPSILON), [], 0
    for step, (pixels, tokens) in enumerate(batches()):
        for group in adam.param_groups:
            group["lr"] = rate(step)
        adam.zero_grad()
        loss = model(pixel_values=torch.tensor(pixels, dtype=dtype), input_ids=torch.tensor(tokens), return_loss=True).loss
        loss.backward()
        total = torch.sqrt(sum((p.grad**2).sum() for _, p in named))
        clipped += int(total > NORM)
        for _, p in named:  # clip_grad_norm_ adds 1e-6 to the norm
            p.grad.mul_(min(1.0, NORM / float(total)))
        adam.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        losses.append(float(loss.detach()))
    assert clipped > STEPS // 2, "clipping is not tried out"
    return losses


def ours(found, dtype):
    system = imported.system_of(found.layout)
    model = states.Model.of(system)
    config = optimizer.AdamW(
        learning_rate=PEAK, warmup=WARMUP, weight_decay=DECAY, beta1=BETAS[0], beta2=BETAS[1], epsilon=EPSILON, clip_norm=NORM
    )
    transform = config.transform(config.rate(STEPS, BATCH, None))
    params = tree.unflatten({path: jnp.asarray(x, dtype) for path, x in found.params.items()})
    state = {"step": jnp.zeros((), jnp.int32), "params": params, "frozen": {}, "buffers": {}, "opt_state": transform.init(params)}
    state |= {"average": {}, "extra": {}}
    make = {"dtype": dtype, "seed": 0, "total_steps": STEPS, "steps_per_epoch": 1.0}
    train_step, losses = jax.jit(steps.make(model, transform, config.average(), **make)), []
    with jax.set_mesh(sharding.Mesh().make(jax.devices()[:1])):
        for pixels, tokens in batches():
            images = jnp.asarray(pixels.transpose(0, 2, 3, 1), dtype)
            state, metrics = train_step(state, {"pairs": {"image": images, "tokens": jnp.asarray(tokens, jnp.int32)}})
            losses.append(float(metrics["loss"]))
    return losses, tree.flatten(jax.device_get(state["params"]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_twelve_steps_follow_those_of_pytorch(torch, tmp_path, dtype, tolerance):  # noqa: F811
    model = model_of(torch, "clip", "narrow", "gelu")
    with torch.no_grad():
        model.logit_scale.fill_(4.7)  # above log 100: the first step clamps it
    model.save_pretrained(tmp_path / "before")
    found = pretrained.load(tmp_path / "before")
    with jax.enable_x64(dtype == "float64"):
        losses, params = ours(found, jnp.dtype(dtype))
    expected = theirs(torch, model, getattr(torch, dtype))
    params = found.layout.to_theirs(params)
    after = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert params.keys() == after.keys() and after["logit_scale"] <= np.log(100)
    loss = np.abs(np.asarray(losses) / expected - 1).max()
    moved = max(np.abs(params[name] - x).max() / np.abs(x).max() for name, x in after.items())
    print(f"{dtype}: largest relative differences over {STEPS} steps: losses {loss:.1e}, parameters {moved:.1e}")
    assert max(loss, moved) < tolerance and min(expected) < 0.95 * expected[0]
