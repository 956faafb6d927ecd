"""``python -m distill_jax.main --gin_file=RECIPE``: flags and gin to one job."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from distill_jax.runtime import signals

if __name__ == "__main__":
    # Before the imports that take seconds, so that Ctrl-C is heard in them too.
    signals.listen()

from distill_jax.cli import help, papers, recipes
from distill_jax.cli.config import build_job, configured_job, recipe_help
from distill_jax.cli.failures import internal_error
from distill_jax.cli.flags import Flags, parse_flags
from distill_jax.io.bad_lines import tolerated
from distill_jax.io.errors import UserError
from distill_jax.io.files import is_full, unwritable
from distill_jax.runtime import processes
from distill_jax.training.runfiles import Lock
from distill_jax.workspace import console as console_
from distill_jax.workspace.console import duration

__all__ = ["build_job", "main"]


def main(argv: list[str]) -> int:
    """Runs one job; returns the exit status: 0 complete, 2 a mistake, 3 partial."""
    started = time.monotonic()
    debug = "--debug" in argv
    try:
        flags = parse_flags(argv)
        text = help.answer(flags)
        if text is None and flags.help:
            text = recipe_help(flags)
        if text is not None:
            print(text)
            return 0
        if flags.doctor:
            from distill_jax.workspace import doctor

            return doctor.run()
        if flags.deterministic:
            processes.deterministic()
        job, config = configured_job(flags)
        with bad_lines(flags, config.directory):
            if flags.plan:
                with planned_for(flags.on):
                    status = job.plan() or 0
                print(papers.told(flags.gin_files, job), end="")
                return status
            command = recipes.command_line(argv)
            with alone(config.directory):
                status = job(config=config.text, command=command) or 0
        print(f"finished in {duration(time.monotonic() - started)}")
        console_.end()
        return status
    except UserError as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        signals.say()
        return 128 + (signals.heard() or signal.SIGINT)
    except BrokenPipeError:
        # The reader of --list or --help has seen enough.
        sys.stdout = None
        return 0
    except OSError as error:
        # Of files that are written line by line, such as logs.
        if not is_full(error):
            return internal_error(error, debug)
        print(unwritable(Path(error.filename or "a file"), error), file=sys.stderr)
        return 2
    except Exception as error:
        return internal_error(error, debug)


def planned_for(machine: str | None) -> contextlib.AbstractContextManager:
    """What is compiled inside is for a machine that is not here; None for this one."""
    if machine is None:
        return contextlib.nullcontext()
    from distill_jax.runtime import targets

    # Of this machine nothing is needed but its processor.
    os.environ["JAX_PLATFORMS"] = "cpu"
    return targets.planning_for(machine)


@contextlib.contextmanager
def alone(directory: Path | None):
    """Joins the processes of one run, and keeps every other run out of its folder."""
    processes.join()
    from distill_jax.runtime.compile_cache import keep_programs

    keep_programs()
    with contextlib.ExitStack() as stack:
        if directory is not None:
            processes.refuse_own_folders(directory)
        if directory is not None and processes.is_first():
            stack.enter_context(Lock(directory, ".job.lock"))
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
        # Who ends first waits: the runtime takes a process that has left for lost.
        processes.meet("the job ends")


@contextlib.contextmanager
def bad_lines(flags: Flags, directory: Path | None):
    """Allows bad lines where the user does, and says what was left out."""
    if not flags.skip_bad_lines:
        yield
        return
    rejects = (directory or Path()) / "rejects.jsonl"
    with tolerated(rejects, flags.bad_line_rate) as tolerance:
        yield
    for notice in tolerance.notices():
        print(notice)


def console() -> int:
    """The command ``distill_jax``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show an id ends no job.
            stream.reconfigure(errors="backslashreplace")
    with signals.working():
        return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())
