"""Checkpoints that are whole or absent, checked before they are trusted.

A thin layer over Orbax. A step's folder holds ``params``, ``rest`` (step, moments,
random key), ``meta`` (JSON) and ``manifest.json`` (a checksum of every file), written
before the folder gets its final name: a folder with a number for a name is complete.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax

from distill_jax.io import mirror
from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_json
from distill_jax.training.manifest import (
    damage,
    read_sealed,
    write_manifest,
    write_sealed,
)
from distill_jax.training.state import TrainState

FORMAT = 1
# Notes that an evaluation added after the step was saved.
_LATER = "later.json"
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: one folder a step.
        keep: how many of the newest stay; the best stays besides.
    """

    def __init__(self, directory: str | Path, *, keep: int = 1):
        import orbax.checkpoint as ocp

        self.directory = Path(directory).absolute()
        self.best: int | None = None
        self._saving: int | None = None
        self._unsent = False
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "rest": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self, keep),
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._before_commit
                ),
            ),
        )

    def save(self, step: int, state: TrainState, meta: dict, *, wait: bool) -> None:
        """Copies the state off the devices and writes it in the background.

        A step that is on the disk already keeps its arrays; its notes are renewed.

        Args:
            meta: JSON-able facts; ``format`` and ``step`` are added.
            wait: return only when it is on the disk.

        Raises:
            UserError: this save (with ``wait``) or the one before could not be
                written.
        """
        save = self._ocp.args
        self._saving_is_done()
        meta = {**meta, "format": FORMAT, "step": step}
        if step in steps(self.directory):
            if jax.process_index() == 0:
                write_sealed(self.directory / str(step) / _LATER, meta)
            return
        self._saving, self._unsent = step, True
        rest = {"step": state.step, "opt_state": state.opt_state}
        try:
            self._manager.save(
                step,
                args=save.Composite(
                    params=save.StandardSave(state.params),
                    rest=save.StandardSave(rest | {"key": _key_bits(state.key)}),
                    meta=save.JsonSave(meta),
                ),
                force=True,
            )
        except OSError as error:
            raise self._failed(error) from error
        if wait:
            self._saving_is_done()

    def check(self) -> None:
        """Raises errors of the background thread as early as possible.

        Raises:
            UserError: the last save could not be written.
        """
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        if self._unsent and not self._manager.is_saving_in_progress():
            self._send()

    def _send(self) -> None:
        """Of a job in a bucket: the run's folder with its newest checkpoint."""
        self._unsent = False
        mirror.push(self.directory.parent)

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Reads a state onto the devices of ``target``'s shardings, on any mesh.

        Raises:
            UserError: the parameters on the disk are of another shape; the first
                paths that differ are named, before anything is allocated.
        """
        restore = self._ocp.args.StandardRestore
        bits = jax.eval_shape(jax.random.key_data, target.key)
        bits = jax.ShapeDtypeStruct(
            bits.shape, bits.dtype, sharding=target.key.sharding
        )
        rest = {"step": target.step, "opt_state": target.opt_state, "key": bits}
        self._same_shapes(step, {"params": target.params, "rest": rest})
        found = self._manager.restore(
            step,
            args=self._ocp.args.Composite(
                params=restore(target.params), rest=restore(rest)
            ),
        )
        return TrainState(
            step=found["rest"]["step"],
            params=found["params"],
            opt_state=found["rest"]["opt_state"],
            key=jax.random.wrap_key_data(found["rest"]["key"]),
        )

    def restore_params(self, step: int, target: Any) -> Any:
        """The parameters of a step alone, onto the shardings of ``target``'s leaves."""
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding
            ),
            target,
        )
        restore = self._ocp.args.StandardRestore(shapes)
        found = self._manager.restore(
            step, args=self._ocp.args.Composite(params=restore)
        )
        return found["params"]

    def wait(self) -> None:
        """Returns when the last save is on the disk.

        Raises:
            UserError: it could not be written.
        """
        self._saving_is_done()

    def close(self) -> None:
        self._manager.close()

    def _same_shapes(self, step: int, target: dict) -> None:
        saved = _shapes(dict(self._manager.item_metadata(step).items()))
        wanted = _shapes(target)
        names = [
            name
            for name in [*wanted, *(n for n in saved if n not in wanted)]
            if wanted.get(name) != saved.get(name) and not name.startswith("meta")
        ]
        if names:
            lines = "; ".join(
                f"{name}: {_shown(saved, name)} on disk, {_shown(wanted, name)} here"
                for name in names[:3]
            )
            raise UserError(
                f"{self.directory / str(step)} is of another model or optimiser "
                f"({len(names)} arrays differ): {lines}",
                "use the settings of that run, or another MODEL_DIR",
            )

    def _saving_is_done(self) -> None:
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        if self._unsent:
            self._send()

    def _failed(self, error: BaseException) -> UserError:
        # What the manager remembers may name a step that never reached the disk.
        self._manager.reload()
        return UserError(
            f"{self.directory / str(self._saving)}: the checkpoint could not be "
            f"written ({error})",
            "free space or fix the permissions; the same command goes on from step "
            f"{max(steps(self.directory), default=0)}",
        )

    def _before_commit(self) -> None:
        """Runs in the writer's thread: all files are written, none has its name."""
        if jax.process_index() == 0:
            for aside in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                write_manifest(aside)


class _LatestAndBest:
    """Orbax's preservation policy: the newest ``keep``, and the run's best."""

    def __init__(self, owner: Checkpoints, keep: int):
        self.owner, self.keep = owner, keep

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        newest = {info.step for info in checkpoints[-self.keep :]}
        return [
            info.step in newest or info.step == self.owner.best for info in checkpoints
        ]


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint to resume from: its step and the notes saved with it."""

    step: int
    meta: dict


def newest(directory: str | Path) -> Found | None:
    """The newest checkpoint whose every file has its checksum, read from the disk.

    Damaged ones are moved to ``damaged/`` with a warning, so that training can write
    the same step again; torn ones (no final name) are only mentioned.

    Raises:
        UserError: it was written by a newer version of this package.
    """
    directory = Path(directory)
    for torn in sorted(directory.glob("*.orbax-checkpoint-tmp*")):
        _log.warning("%s: an unfinished checkpoint is ignored", torn)
    for step in sorted(steps(directory), reverse=True):
        folder = directory / str(step)
        problem = damage(folder)
        if problem is None:
            return Found(step, read_meta(folder))
        _log.warning("%s; going back to the checkpoint before it", problem)
        if jax.process_index() == 0:
            aside = directory.parent / "damaged" / str(step)
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    return None


def steps(directory: str | Path) -> list[int]:
    """The complete checkpoints on the disk, in order."""
    if not Path(directory).is_dir():
        return []
    names = os.listdir(directory)
    return sorted(int(name) for name in names if name.isdigit())


def read_meta(folder: Path) -> dict:
    """The notes saved with a checkpoint.

    Raises:
        UserError: of a newer format.
    """
    meta = read_sealed(folder / _LATER)
    if meta is None and (folder / _LATER).exists():
        # Their work, such as an evaluation, is repeated.
        _log.warning("%s: damaged notes are ignored", folder / _LATER)
    meta = meta or read_json(folder / "meta" / "metadata")
    if meta["format"] > FORMAT:
        raise UserError(
            f"{folder} has checkpoint format {meta['format']}, this version reads up "
            f"to {FORMAT}",
            "upgrade distill_jax, or use another MODEL_DIR",
        )
    return meta


def _key_bits(key: Any) -> Any:
    return jax.random.key_data(key)


def _shapes(tree: Any) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: hasattr(node, "shape")
    )
    return {
        _name(path): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in leaves
        if hasattr(leaf, "shape") and leaf.shape is not None
    }


def _name(path: Any) -> str:
    """A key path the same for named tuples and for what the disk makes of them."""
    keys = (getattr(key, "idx", getattr(key, "name", None)) for key in path)
    return ".".join(
        str(part.key if key is None else key) for part, key in zip(path, keys)
    )


def _shown(shapes: dict[str, tuple], name: str) -> str:
    return "x".join(map(str, shapes[name][0])) or "scalar" if name in shapes else "none"
