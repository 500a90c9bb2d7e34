"""Checkpoints: every call of Orbax stands here.

A run keeps `checkpoints/<step>/` with the items `params`, `buffers`, `average` (where they are not empty) and `training` (moments, extra,
step), the position of the data in the metadata, and a manifest. Frozen parameters are written once, in `frozen/`.
"""

import concurrent.futures
import contextlib
import functools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vlm_jax import errors
from vlm_jax.errors import InfrastructureError, InputError
from vlm_jax.training import difference, manifest, sharding
from vlm_jax.training import state as states
from vlm_jax.training.state import State

PyTree = Any
_ITEMS = ("params", "buffers", "average")
_TRAINING = ("step", "opt_state", "extra")


class Checkpoints:
    """The checkpoints of one run. To be closed, which waits for the last save."""

    def __init__(self, workdir: Path, keep: int):
        logging.getLogger("absl").setLevel(logging.WARNING)
        self.workdir = Path(workdir).absolute()
        self.keep = keep
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "finish-save")
        self._saving: tuple[int, concurrent.futures.Future] | None = None

    @functools.cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Writes steps and deletes old ones. It reads something of every step that is there, and gives up at one that is damaged."""
        policy: Any = ocp.training.preservation_policies.LatestN(self.keep)
        new = functools.partial(
            ocp.training.Checkpointer, str(self.workdir / "checkpoints"), preservation_policy=policy, cleanup_tmp_directories=True
        )
        try:
            return new()
        except Exception:
            for step in steps(self.workdir):
                try:
                    manifest.last_good([_folder(self.workdir, step)], "stop")
                except manifest.Damaged as error:
                    print(error, file=sys.stderr, flush=True)
                    self._set_aside([step])
            return new()

    def save(self, step: int, state: State, data: Any) -> None:
        """Starts to write the state and the JSON-able position of the data; returns before it is on disk.

        Raises:
          InputError: the state has a value that is not finite; what is on disk stays.
          InfrastructureError: the disk fails, or failed in an earlier save.
        """
        self.wait()
        if step in steps(self.workdir):
            return
        states.check_finite(step, state)
        with self._naming(step):
            if state["frozen"] and not (self.workdir / "frozen").exists():
                ocp.save(str(self.workdir / "frozen"), state["frozen"])
                _seal(self.workdir / "frozen")
            saving = self._checkpointer.save_checkpointables_async(step, _items(state), force=True, custom_metadata={"data": data})
        assert saving is not None, "a forced save is never left out"

        def finish() -> None:
            saving.result()
            _seal(_folder(self.workdir, step))

        self._saving = step, self._thread.submit(finish)

    def resume(self, abstract: State, mesh: jax.sharding.Mesh, on_corrupt: manifest.OnCorrupt) -> tuple[int, State, Any] | None:
        """The last good step, the state at it and the position of the data; None where nothing was saved yet.

        Damaged steps after it are renamed to `damaged-<step>`, so that the run can save those steps again.

        Raises:
          InfrastructureError: no step is good, or the last is not and `on_corrupt` is `stop`.
          InputError: the checkpoint is of another model or another optimizer.
        """
        found = left = steps(self.workdir)
        while left:
            step = _last_good(self.workdir, left, on_corrupt)
            try:
                state, data = self._load(step, abstract, mesh)
            except manifest.Damaged as error:  # of an unverified step
                left = left[: left.index(step)]
                if on_corrupt == "stop" or not left or jax.process_count() > 1:
                    earlier = f"; rename its folder, and {left[-1]} is used" if left else "; there is no other to use instead"
                    raise manifest.Damaged(f"{error}{earlier}") from error
                print(f"{error}; the step before it is tried", file=sys.stderr, flush=True)
            else:
                self._set_aside([late for late in found if late > step])
                state["frozen"] = _frozen(self.workdir, abstract["frozen"], mesh)
                return step, {name: state[name] for name in abstract}, data
        return None

    def _load(self, step: int, abstract: State, mesh: jax.sharding.Mesh) -> tuple[State, Any]:
        target = _place(_items(abstract), mesh)
        path = _folder(self.workdir, step)
        if path.is_dir() and not (path / "training").exists():
            raise InputError(f"checkpoint {path}: it holds weights and no moments; start another run with --init-from {self.workdir}")
        with _reading(path):
            _compare(path, target)
            _compare_training(path, target["training"])
            found = ocp.load_checkpointables(str(path), target)
            metadata: Any = ocp.checkpointables_metadata(str(path)).custom_metadata
        return {name: found.get(name, {}) for name in _ITEMS} | found["training"], metadata["data"]

    def _set_aside(self, damaged: Sequence[int]) -> None:
        """Renames them, so that they are no steps any more."""
        if not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                folder = _folder(self.workdir, step)
                names = (f"damaged-{step}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
                folder.rename(next(folder.with_name(name) for name in names if not folder.with_name(name).exists()))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged steps are set aside")

    def wait(self) -> None:
        """Until the last save is on disk.

        Raises:
          InfrastructureError: it could not be written.
        """
        if self._saving is not None:
            (step, saving), self._saving = self._saving, None
            with self._naming(step):
                saving.result()

    def close(self) -> None:
        """Waits for the last save; raises as `wait`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if "_checkpointer" in vars(self):
                with contextlib.suppress(Exception):  # Orbax says again what wait has said
                    self._checkpointer.close()

    @contextlib.contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        """Says of an error of the disk which step is lost, and which is not."""
        try:
            yield
        except Exception as error:
            if errors.exit_code(error) != errors.INFRASTRUCTURE:
                raise
            whole = [str(s) for s in steps(self.workdir) if s != step]
            kept = f"step {whole[-1]} is whole" if whole else "no step was saved before"
            raise InfrastructureError(
                f"step {step} could not be saved in {self.workdir / 'checkpoints'}: {_first_line(error)}. {kept[0].upper()}{kept[1:]}; "
                "make room or mend the disk, and the same command goes on from there"
            ) from error


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


def load_weights(
    workdir: Path, step: int | None, abstract: State, mesh: jax.sharding.Mesh, *, on_corrupt: manifest.OnCorrupt = "stop"
) -> tuple[State, int]:
    """What evaluation and export need of a checkpoint, and its step: no moments, no extra. Changes nothing on disk.

    Args:
      step: None for the latest.
      abstract: shapes and dtypes of `params`, `frozen`, `buffers`, `average`; an average that was not kept comes back empty.
      on_corrupt: whether a damaged latest step is replaced by the previous; a step that was asked for never is.

    Raises:
      InfrastructureError: the checkpoint is damaged.
      InputError: there is no such checkpoint, or it is of another model.
    """
    found = steps(workdir)
    if not found:
        raise InputError(f"checkpoint {workdir}: it holds no complete checkpoint yet")
    if step is not None and step not in found:
        raise InputError(f"checkpoint {workdir}: no step {step}; it has {', '.join(map(str, found))}")
    step = _last_good(workdir, found, on_corrupt) if step is None else _last_good(workdir, [step], "stop")
    path = _folder(workdir, step)
    target = _place({name: abstract[name] for name in _ITEMS if abstract[name]}, mesh)
    if "average" in target and not (path / "average").exists():
        del target["average"]
    with _reading(path):
        _compare(path, target)
        loaded = ocp.load_checkpointables(str(path), target)
    weights = {name: loaded.get(name, {}) for name in _ITEMS}
    return weights | {"frozen": _frozen(workdir, abstract["frozen"], mesh)}, step


def save_weights(workdir: Path, step: int, weights: State) -> None:
    """Writes a checkpoint that evaluation and `init_from` can read and no run can resume, such as imported or merged weights.

    Args:
      weights: `params`, `frozen`, `buffers`, `average`; empty ones are left out.

    Raises:
      InputError: the step is there already.
      InfrastructureError: the disk refuses.
    """
    path = _folder(workdir, step)
    if path.exists():
        raise InputError(f"checkpoint {path}: it is there already; choose another folder")
    try:
        if weights["frozen"]:
            ocp.save(str(workdir.absolute() / "frozen"), weights["frozen"])
            _seal(workdir.absolute() / "frozen")
        ocp.save_checkpointables(str(path), {name: weights[name] for name in _ITEMS if weights[name]})
        _seal(path)
    except Exception as error:
        if errors.exit_code(error) != errors.INFRASTRUCTURE:
            raise
        raise InfrastructureError(f"checkpoint {path} could not be saved: {_first_line(error)}") from error


def _folder(workdir: Path, step: int) -> Path:
    return workdir.absolute() / "checkpoints" / str(step)


def _seal(folder: Path) -> None:
    """The processes share the folder; one writes its manifest."""
    if jax.process_index() == 0:
        manifest.write(folder)


def _last_good(workdir: Path, candidates: Sequence[int], on_corrupt: manifest.OnCorrupt) -> int:
    folders = [_folder(workdir, step) for step in sorted(candidates, reverse=True)]
    return int(folders[manifest.last_good(folders, on_corrupt)].name)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What Orbax says of files that it cannot read means damage, where no manifest could tell."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or (path / manifest.NAME).exists():
            raise
        raise manifest.Damaged(f"checkpoint {path} is damaged: it cannot be read ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _items(state: State) -> dict[str, PyTree]:
    return {name: state[name] for name in _ITEMS if state[name]} | {"training": {name: state[name] for name in _TRAINING}}


def _place(abstract: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    place = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding.shardings(abstract, mesh)
    )
    return place


def _frozen(workdir: Path, abstract: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Parameters that are not trained, in the dtype that is asked for. There is one copy of them, and no other to use instead."""
    if not abstract:
        return {}
    path = workdir.absolute() / "frozen"
    manifest.last_good([path], "stop")
    with _reading(path):
        stored: Any = ocp.checkpointables_metadata(str(path)).metadata
        different = difference.lines(difference.leaves(stored["state"]), difference.leaves(abstract), casts="float")
        difference.refuse(path, "model", different)
        return ocp.load(str(path), _place(abstract, mesh))


def _compare(path: Path, target: Mapping[str, PyTree]) -> None:
    """Names the first differences of the parameters, which Orbax would report as a tree or cast silently."""
    if not path.is_dir():
        raise InputError(f"checkpoint {path}: no such folder")
    stored = ocp.checkpointables_metadata(str(path)).metadata
    for item in sorted(set(_ITEMS) & set(target)):
        if item not in stored:
            raise InputError(f"checkpoint {path}: it holds no {item}, which this model has; it is of another model")
        have, want = difference.leaves(stored[item]), difference.leaves(target[item])
        difference.refuse(path, "model", difference.lines(have, want, casts="none"))


def _compare_training(path: Path, target: Mapping[str, PyTree]) -> None:
    """Another optimizer has moments with other names or shapes; moments may go on in another floating dtype, and only they."""
    stored: Any = ocp.checkpointables_metadata(str(path)).metadata["training"]
    have, want = (difference.leaves(part["opt_state"]) for part in (stored, target))
    advice = "go on with the one in config.json, or start another run with --init-from this one"
    difference.refuse(path, "optimizer", difference.lines(have, want, casts="float"), advice)
    cast = {f"{have[name][1]} to {dtype}" for name, (_, dtype) in want.items() if have[name][1] != dtype}
    if cast and jax.process_index() == 0:
        print(f"checkpoint {path}: the optimizer's moments are cast from {', '.join(sorted(cast))}", file=sys.stderr)
    have, want = (difference.leaves({name: part[name] for name in ("extra", "step") if name in part}) for part in (stored, target))
    difference.refuse(path, "system", difference.lines(have, want, casts="none"), advice)
