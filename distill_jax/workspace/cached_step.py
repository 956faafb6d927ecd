"""Cached steps of a job: results that record their inputs.

A step is a folder with ``part.json``. It is done when that file says so, and it stays
done while its inputs (digests by name) are unchanged. The policy, in one place:

1. complete, same inputs: used as it is, if its files are those that it was finished
   with (sizes and SHA-256 are in ``part.json``);
2. incomplete, same inputs: its function is called again and resumes;
3. other inputs: moved aside (``NAME.old``), recomputed; the console names the change.

With several processes the first decides and records; all compute the step, which
may take all of their devices, and none continues before its files exist.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_jax.io import mirror, sums
from distill_jax.io.files import digest
from distill_jax.io.reading import read_record, write_record
from distill_jax.runtime import processes
from distill_jax.workspace.console import duration, say

_RECORD = "part.json"


def part(
    directory: str | Path,
    inputs: dict[str, Any],
    make: Callable[[Path], dict[str, Any] | None],
    *,
    what: str,
    also: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """Computes a step, or finds its result; returns the report of its function.

    Args:
        directory: the folder of the part.
        inputs: everything that the part depends on; JSON-able values or digests.
        make: called with the folder; resumes by itself where it was interrupted.
            Returns JSON-able facts (counts, seconds, cost) to be kept.
        what: the part's name for people.
        also: other files and folders beside the folder that belong to the part: they
            move with it, and files are checked with it.
    """
    directory = Path(directory)
    wanted = {name: digest(value) for name, value in inputs.items()}
    done = processes.is_first() and _is_done(directory, wanted, what, also)
    if processes.agreed(done):
        say(f"{what}: already there")
        return read_record(directory / _RECORD, made=dict)["made"]
    record = record_of(directory)
    started = time.perf_counter()
    spent = 0.0 if record is None else record.get("seconds", 0.0)
    state = {"inputs": wanted, "complete": False, "made": {}, "seconds": spent}
    if processes.is_first():
        write_record(directory / _RECORD, state)
        mirror.push(directory)
    processes.meet(f"{what} begins")
    made = make(directory) or {}
    seconds = spent + time.perf_counter() - started
    made = {**made, "seconds": round(seconds, 3)}
    state = {"inputs": wanted, "complete": True, "made": made, "seconds": seconds}
    processes.meet(f"{what} is made")
    if processes.is_first():
        files = [path.name for path in also if path.is_file()]
        beside = sums.take(directory.parent, files)
        state |= {"files": sums.take(directory), "beside": beside}
        write_record(directory / _RECORD, state)
        mirror.push(directory, *also)
    processes.meet(f"{what} is recorded")
    say(f"{what}: {duration(seconds)}")
    return made


def _is_done(directory: Path, wanted: dict, what: str, also: tuple[Path, ...]) -> bool:
    """Whether a part is complete; one of other inputs is moved aside."""
    record = record_of(directory)
    if record is not None and record["inputs"] != wanted:
        changed = sorted(
            name
            for name in {*record["inputs"], *wanted}
            if record["inputs"].get(name) != wanted.get(name)
        )
        say(f"{what}: made again, because {', '.join(changed)} changed")
        for path in (directory, *also):
            move_aside(path)
        return False
    if record is None or not record["complete"]:
        return False
    _check(directory, record)
    return True


def check(directory: Path) -> None:
    """Compares finished parts with their records, for a reader that makes none.

    A part that is already there does not visit those that it was made of.

    Args:
        directory: the folder of the part, or one that holds parts.

    Raises:
        UserError: a file of them is damaged or gone.
    """
    for path in sorted(directory.rglob(_RECORD)):
        if any(part.endswith(".old") for part in path.relative_to(directory).parts):
            continue
        record = record_of(path.parent)
        if record is not None and record["complete"]:
            _check(path.parent, record)


def reopen(directory: Path) -> None:
    """Has a complete part's maker called again, which goes on where it was."""
    record = record_of(directory)
    if record is not None:
        write_record(directory / _RECORD, {**record, "complete": False})


def replace(directory: Path, save: Callable[[Path], None]) -> None:
    """Replaces files of a part by those that ``save`` writes.

    A complete part is incomplete meanwhile: where the process is killed, the part is
    made again by the next one, which then replaces them.
    """
    record = record_of(directory)
    complete = record is not None and record["complete"]
    if complete:
        reopen(directory)
        mirror.push(directory)
    save(directory)
    if record is not None and complete:
        write_record(directory / _RECORD, {**record, "files": sums.take(directory)})
        mirror.push(directory)


def _check(directory: Path, record: dict) -> None:
    todo = f"restore it, or delete {directory}: it is made again"
    sums.check(directory, record.get("files", {}), todo)
    sums.check(directory.parent, record.get("beside", {}), todo)


def record_of(directory: Path) -> dict | None:
    path = directory / _RECORD
    if not path.is_file():
        return None
    return read_record(
        path,
        f"delete {path}: the same command resumes it, or makes it again",
        inputs=dict,
        complete=bool,
        made=dict,
    )


def move_aside(path: Path) -> None:
    """Renames to ``NAME.old``; what was moved there before is deleted."""
    if not path.exists():
        return
    old = path.with_name(path.name + ".old")
    if old.is_dir():
        shutil.rmtree(old)
    elif old.exists():
        old.unlink()
    path.rename(old)
