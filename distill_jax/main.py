"""``python -m distill_jax.main --gin_file=RECIPE``: flags and gin to one job."""

from __future__ import annotations

import io
import sys
import time

from distill_jax.runtime import signals

if __name__ == "__main__":
    # Before the imports that take seconds, so that Ctrl-C is heard in them too.
    signals.listen()

from distill_jax.cli import failures, help, papers, recipes
from distill_jax.cli.config import build_job, configured_job, recipe_help
from distill_jax.cli.flags import Flags, parse_flags
from distill_jax.cli.running import bad_lines, planned_for, run_lock
from distill_jax.runtime import processes
from distill_jax.workspace import console as console_
from distill_jax.workspace.console import duration

__all__ = ["build_job", "main"]


def main(argv: list[str]) -> int:
    """Runs one job; returns the exit status: 0 complete, 2 a mistake, 3 partial."""
    try:
        return run(parse_flags(argv), argv)
    except BaseException as error:
        return failures.status(error, debug="--debug" in argv)


def run(flags: Flags, argv: list[str]) -> int:
    """Answers a question about recipes, or plans or runs the job that they say."""
    started = time.monotonic()
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
            print(papers.plan_lines(flags.gin_files, job), end="")
            return status
        command = recipes.command_line(argv)
        with run_lock(config.directory):
            status = job(config=config.text, command=command) or 0
    print(f"finished in {duration(time.monotonic() - started)}")
    console_.end()
    return status


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
