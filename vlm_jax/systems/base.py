"""The protocol between the train step and a system: a model, an objective, and little else.

A system is a frozen dataclass whose fields are its configuration. `training` knows systems through this file only, so
whatever a paper wants from the trainer is said here, for all systems.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

PyTree = Any
Batch = Mapping[str, Mapping[str, Array]]
"""Streams by name (`pairs`, `pages`, ...), each a dict of fields with the batch axis first."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """Keeps parameters within [low, high]: clipped after every update."""

    pattern: str
    """Regular expression, searched in parameter paths."""
    low: float
    high: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What an objective may know of the run."""

    key: Key[Array, ""]
    """This step's random key: fold in a name where it is used."""
    step: Int[Array, ""]
    total_steps: Int[Array, ""]
    steps_per_epoch: Float[Array, ""]
    microbatches: int = dataclasses.field(default=1, metadata={"static": True})
    """Chunks for `ops.chunks.in_chunks`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    """What an objective returns."""

    loss: Float[Array, ""]
    metrics: dict[str, Array] = dataclasses.field(default_factory=dict)
    """Scalars to be logged."""
    extra: PyTree = dataclasses.field(default_factory=dict)
    """The next step's `extra`, with the structure of this one's."""
    buffers: dict[str, Any] = dataclasses.field(default_factory=dict)
    """New values of the model's non-Param variables, a nested dict; those left out keep their value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A model and an objective. Subclasses add their configuration as fields."""

    frozen: str = r"(?!)"
    """Regular expression over parameter paths: what it finds gets no gradient and no optimizer state. Nothing by default."""

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """Limits of single parameters, such as CLIP's of the log scale."""
        return ()

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """A freshly initialised model: nnx.Param are parameters, any other variable is a buffer; no random state."""
        raise TypeError(f"{type(self).__name__} does not define build")

    def init_extra(self, model: nnx.Module) -> PyTree:
        """State without gradients that travels in checkpoints, such as an EMA teacher or a queue."""
        return {}

    def objective(self, model: nnx.Module, batch: Batch, extra: PyTree, context: Context) -> Objective:
        """The loss of one global batch."""
        raise TypeError(f"{type(self).__name__} does not define objective")

    def adapt(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Parameters and buffers by path of another run of the same system, made to fit this one; as they are by default.

        Called on what `init_from` names, before shapes are compared: the place to resize a table of positions.

        Raises:
          InputError: they cannot be made to fit.
        """
        return dict(weights)

    def check_chunks(self, model: nnx.Module, microbatches: int) -> None:
        """Refuses so many chunks of a batch where they would change what is computed, as those of batch statistics.

        Raises:
          InputError: they would.
        """

    def check(self, streams: Mapping[str, Any]) -> None:
        """Compares the model with what the data streams say of themselves, before anything is built.

        Args:
          streams: what the `describe()` of each stream returned: `vocab_size`, `length`, `eos_id`, `image_size` and so on.

        Raises:
          InputError: a field of the data does not fit a field of the model.
        """
