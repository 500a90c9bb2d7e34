"""What a configuration computes: a state, and the step to the next one, laid out on a mesh. No data is opened for it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vlm_jax.config import Config
from vlm_jax.training import sharding, step, tree
from vlm_jax.training import state as states

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run, and how what they take is divided."""

    mesh: Any
    """Devices, or a jax.sharding.AbstractMesh where only shapes are asked for."""
    model: states.Model
    rate: Callable[[Any], Any]
    """Learning rate by step."""
    init: Callable[[], states.State]
    """A fresh state."""
    step: Callable[..., Any]
    """A state and a batch to the next state and metrics."""
    forward: Callable[..., Any]
    """A state and a batch to the objective."""
    abstract: states.State
    """Shapes and dtypes of the state."""
    shardings: PyTree
    """Of the state."""

    @classmethod
    def of(cls, config: Config, mesh: Any, *, total_steps: int, batch_size: int, examples: int | None) -> "Program":
        """Traces the model and the optimizer without allocating anything.

        Args:
          batch_size: of the stream that durations count.
          examples: in an epoch of it; None where that is not known, and the whole training counts as one.

        Raises:
          InputError: a pattern of the configuration finds no parameter, or the warm-up does not fit.
        """
        model = states.Model.of(config.system)
        config.system.check_chunks(model.merge(model.params, model.buffers), config.microbatches)
        config.optimizer.check(tree.partition(model.params, config.system.frozen)[0])
        rate = config.optimizer.rate(total_steps, batch_size, examples)
        transform, average = config.optimizer.transform(rate), config.optimizer.average()
        settings = {
            "dtype": jnp.dtype(config.precision),
            "seed": config.seed,
            "total_steps": total_steps,
            "steps_per_epoch": examples / batch_size if examples else float(total_steps),
            "microbatches": config.microbatches,
        }
        init = functools.partial(
            states.init, model, transform, average, seed=config.seed, frozen_dtype=jnp.dtype(config.frozen_dtype)
        )
        abstract = jax.eval_shape(init)
        return cls(
            mesh=mesh,
            model=model,
            rate=rate,
            init=init,
            step=step.make(model, transform, average, **settings),
            forward=step.make_forward(model, **settings),
            abstract=abstract,
            shardings=sharding.shardings(abstract, mesh),
        )

    def start(self) -> states.State:
        """A fresh state, made where its parts stay: no device and no host holds more of it than it keeps."""
        return jax.jit(self.init, out_shardings=self.shardings)()

    def jitted(self) -> Any:
        """The step, compiled when it is first called; it takes the state's memory for the next one."""
        return jax.jit(
            self.step,
            donate_argnums=0,
            in_shardings=(self.shardings, sharding.batch_sharding(self.mesh)),
            out_shardings=(self.shardings, None),
        )
