"""Checkpoints: every call of Orbax stands here.

A run keeps `checkpoints/<step>/` with the items `params`, `buffers`, `average` (where they are not empty) and `training` (moments, extra,
step), and the position of the data in the metadata. Frozen parameters are written once, in `frozen/`.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from vlm_jax.errors import InputError
from vlm_jax.training import sharding, tree
from vlm_jax.training.state import State

PyTree = Any
_ITEMS = ("params", "buffers", "average")
_TRAINING = ("step", "opt_state", "extra")


class Checkpoints:
    """The checkpoints of one run. To be closed, which waits for the last save."""

    def __init__(self, workdir: Path, keep: int):
        logging.getLogger("absl").setLevel(logging.WARNING)
        self.workdir = Path(workdir).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            str(self.workdir / "checkpoints"),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """The last complete step, or None."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, step: int, state: State, data: Any) -> None:
        """Starts to write the state and the JSON-able position of the data; returns before it is on disk.

        Errors of an earlier save are raised here.
        """
        if any(found.step == step for found in self._checkpointer.checkpoints):
            return
        if state["frozen"] and not (self.workdir / "frozen").exists():
            ocp.save(str(self.workdir / "frozen"), state["frozen"])
        self._checkpointer.save_checkpointables_async(step, _items(state), force=True, custom_metadata={"data": data})

    def restore(self, step: int, abstract: State, mesh: jax.sharding.Mesh) -> tuple[State, Any]:
        """The whole state, straight into its shards on this mesh, and the position of the data.

        Raises:
          InputError: the checkpoint is of another model or another optimizer.
        """
        target = _place(_items(abstract), mesh)
        path = self.workdir / "checkpoints" / str(step)
        _compare(path, target)
        _compare_moments(path, target["training"]["opt_state"])
        found = self._checkpointer.load_checkpointables(step, target)
        state = {name: found.get(name, {}) for name in _ITEMS} | found["training"]
        state["frozen"] = _frozen(self.workdir, abstract["frozen"], mesh)
        metadata: Any = self._checkpointer.metadata(step).custom_metadata
        return {name: state[name] for name in abstract}, metadata["data"]

    def wait(self) -> None:
        """Until the last save is on disk; raises its error."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the last save."""
        self._checkpointer.close()


def steps(workdir: Path) -> list[int]:
    """Steps with a complete checkpoint, in order."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def locate(folder: Path) -> tuple[Path, int | None]:
    """The workdir that a folder is, or is a checkpoint of; in the latter case with the step.

    Raises:
      InputError: it is neither.
    """
    if (folder / "config.json").is_file():
        return folder, None
    workdir = folder.absolute().parent.parent
    if folder.name.isdigit() and (workdir / "config.json").is_file():
        return workdir, int(folder.name)
    raise InputError(f"checkpoint {folder}: no config.json here; give a workdir, or a folder below its checkpoints/")


def load_weights(workdir: Path, step: int | None, abstract: State, mesh: jax.sharding.Mesh) -> tuple[State, int]:
    """What evaluation and export need of a checkpoint, and its step: no moments, no extra.

    Args:
      step: None for the latest.
      abstract: shapes and dtypes of `params`, `frozen`, `buffers`, `average`; an average that was not kept comes back empty.

    Raises:
      InputError: there is no such checkpoint, or it is of another model.
    """
    found = steps(workdir)
    if not found:
        raise InputError(f"checkpoint {workdir}: it holds no complete checkpoint yet")
    step = found[-1] if step is None else step
    if step not in found:
        raise InputError(f"checkpoint {workdir}: no step {step}; it has {', '.join(map(str, found))}")
    path = (workdir / "checkpoints" / str(step)).absolute()
    target = _place({name: abstract[name] for name in _ITEMS if abstract[name]}, mesh)
    if "average" in target and not (path / "average").exists():
        del target["average"]
    _compare(path, target)
    loaded = ocp.load_checkpointables(str(path), target)
    weights = {name: loaded.get(name, {}) for name in _ITEMS}
    return weights | {"frozen": _frozen(workdir, abstract["frozen"], mesh)}, step


def _items(state: State) -> dict[str, PyTree]:
    return {name: state[name] for name in _ITEMS if state[name]} | {"training": {name: state[name] for name in _TRAINING}}


def _place(abstract: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    place = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding.shardings(abstract, mesh)
    )
    return place


def _frozen(workdir: Path, abstract: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    return ocp.load(str(workdir.absolute() / "frozen"), _place(abstract, mesh)) if abstract else {}


def _compare(path: Path, target: Mapping[str, PyTree]) -> None:
    """Names the first differences of the parameters, which Orbax would report as a tree or cast silently."""
    if not path.is_dir():
        raise InputError(f"checkpoint {path}: no such folder")
    stored = ocp.checkpointables_metadata(str(path)).metadata
    for item in set(_ITEMS) & set(target):
        if item not in stored:
            raise InputError(f"checkpoint {path}: it holds no {item}, which this model has; it is of another model")
        have = {name: (tuple(x.shape), str(x.dtype)) for name, x in tree.flatten(stored[item]).items()}
        want = {name: (tuple(x.shape), str(x.dtype)) for name, x in tree.flatten(target[item]).items()}
        if have != want:
            names = [name for name in sorted(have.keys() | want.keys()) if have.get(name) != want.get(name)]
            lines = [f"{n}: stored {_say(have.get(n))}, here {_say(want.get(n))}" for n in names[:4]]
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise InputError(f"checkpoint {path} is of another model: {'; '.join(lines)}{more}")


def _compare_moments(path: Path, target: PyTree) -> None:
    """Another optimizer has moments with other names or shapes; another dtype is cast."""

    def shapes(state: PyTree) -> dict[str, tuple[int, ...]]:
        return {tree.path_of(keys): tuple(x.shape) for keys, x in jax.tree_util.tree_leaves_with_path(state)}

    stored: Any = ocp.checkpointables_metadata(str(path)).metadata["training"]
    have, want = shapes(stored["opt_state"]), shapes(target)
    if have != want:
        first = next(name for name in sorted(have.keys() | want.keys()) if have.get(name) != want.get(name))
        raise InputError(
            f"checkpoint {path} is of another optimizer ({first}: stored {have.get(first, 'nothing')}, here "
            f"{want.get(first, 'nothing')}): go on with the one in config.json, or start another run with --init-from this one"
        )


def _say(leaf: tuple[tuple[int, ...], str] | None) -> str:
    return "nothing" if leaf is None else f"{'x'.join(map(str, leaf[0])) or 'scalar'} {leaf[1]}"
