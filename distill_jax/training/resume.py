"""Where a run begins or continues, and what it remembers; decided in one place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from distill_jax.io.errors import UserError
from distill_jax.training import checkpoints
from distill_jax.training.meters import Meters


@dataclasses.dataclass
class Notes:
    """Notes that a run keeps besides its state; each checkpoint holds a copy.

    Attributes:
        best: the best evaluation: its ``step``, ``value``, and all its measures.
        bad_evals: evaluations since then.
        evaluated: the step of the last evaluation.
        batch: checksum of the last batch.
        meters: means since the last record of the log.
        finished: "steps" or "patience" once the run is complete.
        at_once: queries at a time, learnt from a device that ran out of memory.
    """

    best: dict[str, Any] | None = None
    bad_evals: int = 0
    evaluated: int = 0
    batch: str | None = None
    meters: Meters = dataclasses.field(default_factory=Meters)
    finished: str | None = None
    at_once: int | None = None

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation."""
        return self.best["step"] if self.best else None

    def judge(
        self, step: int, measures: Mapping[str, float], name: str | None, mode: str
    ) -> bool:
        """Notes an evaluation; returns whether it is the best so far.

        Args:
            name: the measure that decides, or None; nan is never the best.
            mode: "max" or "min".

        Raises:
            UserError: the measure is not among those evaluated.
        """
        if name is not None and name not in measures:
            raise UserError(
                f"the evaluation has no measure {name!r}",
                f"it has {', '.join(sorted(measures))}",
            )
        self.evaluated = step
        if name is None:
            return False
        value, sign = measures[name], 1 if mode == "max" else -1
        better = not math.isnan(value) and (
            self.best is None or sign * value > sign * self.best["value"]
        )
        if better:
            self.best = {"step": step, "value": value, **measures}
            self.bad_evals = 0
        else:
            self.bad_evals += 1
        return better

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint's metadata."""
        names = [field.name for field in dataclasses.fields(self)]
        values = {name: getattr(self, name) for name in names}
        return {**values, "meters": self.meters.to_json()}

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> Notes:
        """The notes in a checkpoint's metadata."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in meta]
        values = {name: meta[name] for name in names}
        return cls(**{**values, "meters": Meters.from_json(meta["meters"])})


def resume_or_start(
    directory: Path, config: Mapping[str, Any], may_change: tuple[str, ...], steps: int
) -> tuple[int, Notes]:
    """The number of updates done, and what the run noted.

    1. A finished run is not trained again.
    2. Otherwise the run continues from its newest undamaged checkpoint, with its step,
       moments, random key and place in the feed.
    3. Otherwise it begins at step 0 with the parameters given (an initial checkpoint's,
       whose step and moments are never taken over),
    4. which the caller initialises from the seed if there is no initial checkpoint.

    Raises:
        UserError: the checkpoint is of another configuration.
    """
    found = _agreed(directory)
    if found is None:
        return 0, Notes()
    same_config(directory, found.meta["config"], config, may_change)
    notes = Notes.from_json(found.meta)
    if found.meta["processes"] != jax.process_count():
        # Each process keeps the checksum of its own rows.
        notes.batch = None
    if notes.finished == "steps" and steps > found.step:
        notes.finished = None
    return found.step, notes


def same_config(
    directory: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    may_change: tuple[str, ...],
) -> None:
    """Refuses to continue with settings that differ from those of the start."""
    changed = [
        f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
        for name in sorted({*before, *now})
        if _json(before.get(name)) != _json(now.get(name)) and name not in may_change
    ]
    if changed:
        raise UserError(
            f"{directory.parent} was trained with other settings: {'; '.join(changed)}",
            "use those settings, allow the change by name, or another MODEL_DIR",
        )


def same_feed(digest: str, before: str, step: int) -> None:
    """Refuses to continue with data that differ from those of the start."""
    if digest != before:
        raise UserError(
            f"batch {step} of the feed differs from the one before the run was stopped",
            "the data, its order or the batch size changed; use another MODEL_DIR",
        )


def _agreed(directory: Path) -> checkpoints.Found | None:
    """The newest whole checkpoint, the same for every process."""
    if jax.process_count() == 1:
        return checkpoints.newest(directory)
    from jax.experimental import multihost_utils

    # One process looks (and moves damaged folders aside), the others follow.
    found = checkpoints.newest(directory) if jax.process_index() == 0 else None
    step = int(multihost_utils.broadcast_one_to_all(found.step if found else 0))
    if not step:
        return None
    return checkpoints.Found(step, checkpoints.read_meta(directory / str(step)))


def _json(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    return value
