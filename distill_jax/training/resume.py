"""Where a run goes on from, decided in one place."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from distill_jax.io.errors import UserError
from distill_jax.training import checkpoints

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where to begin.

    Attributes:
        step: updates done.
        notes: what the loop keeps between checkpoints: the best evaluation, how many
            since were worse, the last step evaluated, the last batch's checksum.
        finished: why the run is complete, or None.
    """

    step: int
    notes: dict
    finished: str | None = None


def resume_or_start(
    directory: Path, config: Mapping[str, Any], may_change: tuple[str, ...], steps: int
) -> Start:
    """The whole policy:

    1. a finished run is not done again;
    2. else go on from the newest undamaged checkpoint of this run, with its step,
       moments, random key and place in the feed;
    3. else begin at step 0 with the parameters given (an initial checkpoint's, whose
       step and moments are never taken over);
    4. which the caller makes from the seed when there is no initial checkpoint.

    Raises:
        UserError: the checkpoint was made with another configuration.
    """
    found = _agreed(directory)
    if found is None:
        fresh = {"best": None, "bad_evals": 0, "evaluated": 0, "batch": None}
        return Start(0, {**fresh, "meters": {}, "finished": None, "at_once": None})
    same_config(directory, found.meta["config"], config, may_change)
    keep = ("best", "bad_evals", "evaluated", "batch", "meters")
    notes = {name: found.meta[name] for name in keep}
    notes["at_once"] = found.meta.get("at_once")
    if found.meta["processes"] != jax.process_count():
        # Each process keeps the checksum of its own rows.
        notes["batch"] = None
    finished = found.meta["finished"]
    if finished == "steps" and steps > found.step:
        finished = None
    return Start(found.step, {**notes, "finished": finished}, finished)


def same_config(
    directory: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    may_change: tuple[str, ...],
) -> None:
    """Refuses to go on with other settings than the run was started with."""
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
    """Refuses to go on with other data than the run was started with."""
    if digest != before:
        raise UserError(
            f"the feed gives another batch {step} than before the run was stopped",
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
