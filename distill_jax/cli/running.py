"""What surrounds one job: its machine, its folder, and the lines it may leave out."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

from distill_jax.cli.flags import Flags
from distill_jax.io.bad_lines import tolerated
from distill_jax.io.errors import UserError
from distill_jax.io.mirror import mirrored
from distill_jax.runtime import processes


def planned_for(machine: str | None) -> contextlib.AbstractContextManager:
    """What is compiled inside is for a machine that is not here; None for this one."""
    if machine is None:
        return contextlib.nullcontext()
    from distill_jax.runtime import targets

    # Of this machine nothing is needed but its processor.
    os.environ["JAX_PLATFORMS"] = "cpu"
    return targets.planning_for(machine)


@contextlib.contextmanager
def run_lock(directory: Path | None):
    """Joins the processes of one run, and keeps every other run out of its folder."""
    processes.join()
    from distill_jax.runtime.compile_cache import keep_programs
    from distill_jax.training.runfiles import Lock  # JAX, which --list does not need

    keep_programs()
    with contextlib.ExitStack() as stack:
        if directory is not None:
            processes.refuse_own_folders(directory)
        if directory is not None and processes.is_first():
            stack.enter_context(Lock(directory, ".job.lock"))
            stack.enter_context(mirrored(directory))
        processes.meet("the folder is here")
        try:
            yield
        except Exception as error:
            if not processes.several():
                raise
            if isinstance(error, UserError):
                print(error, file=sys.stderr)
                processes.leave(error.status)
            traceback.print_exc()
            processes.leave(1)
        # All processes exit together: JAX treats one that exits early as failed.
        processes.meet("the job ends")


@contextlib.contextmanager
def bad_lines(flags: Flags, directory: Path | None):
    """Tolerates bad lines if the user allows them, and reports what was skipped."""
    if not flags.skip_bad_lines:
        yield
        return
    rejects = (directory or Path()) / "rejects.jsonl"
    with tolerated(rejects, flags.bad_line_rate) as tolerance:
        yield
    for notice in tolerance.notices():
        print(notice)
