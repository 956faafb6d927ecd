"""``python -m distill_jax.main --gin_file=RECIPE``: flags and gin to one job.

This is the only file that knows gin. A recipe imports what it names and builds the
very objects; here its statements are checked, parsed, and the job they make is called.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import time
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from distill_jax.cli import help, recipes, trust
from distill_jax.cli.flags import Flags, parse_flags
from distill_jax.io.bad_lines import tolerated
from distill_jax.io.errors import UserError
from distill_jax.io.files import is_full, unwritable
from distill_jax.runtime import processes
from distill_jax.training.runfiles import Lock
from distill_jax.workspace.console import duration

# What gin raises at a name or a value that is wrong.
_PARSING = (
    ValueError,
    TypeError,
    NameError,
    AttributeError,
    SyntaxError,
    RuntimeError,
    ImportError,
    OSError,
    tokenize.TokenError,
)


def main(argv: list[str]) -> int:
    """Runs one job; returns the exit status: 0 complete, 2 a mistake, 3 partial."""
    started = time.monotonic()
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
        job = build_job(flags)
        with bad_lines(flags):
            if flags.plan:
                with planned_for(flags.on):
                    return job.plan() or 0
            command = recipes.command_line(argv)
            with alone():
                status = job(config=gin.config_str(), command=command) or 0
        print(f"finished in {duration(time.monotonic() - started)}")
        return status
    except UserError as error:
        print(error, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of --list or --help has seen enough.
        sys.stdout = None
        return 0
    except OSError as error:
        # Of files that are written line by line, such as logs.
        if not is_full(error):
            raise
        print(unwritable(Path(error.filename or "a file"), error), file=sys.stderr)
        return 2


def planned_for(machine: str | None) -> contextlib.AbstractContextManager:
    """What is compiled inside is for a machine that is not here; None for this one."""
    if machine is None:
        return contextlib.nullcontext()
    from distill_jax.runtime import targets

    # Of this machine nothing is needed but its processor.
    os.environ["JAX_PLATFORMS"] = "cpu"
    return targets.planning_for(machine)


@contextlib.contextmanager
def alone():
    """Joins the processes of one run, and keeps every other run out of its folder."""
    processes.join()
    with contextlib.ExitStack() as stack:
        folder = model_dir()
        if folder is not None and processes.is_first():
            stack.enter_context(Lock(folder, ".job.lock"))
        yield
        # Who ends first waits: the runtime takes a process that has left for lost.
        processes.meet("the job ends")


def model_dir() -> Path | None:
    """The folder that the job writes to; None for a job that has none."""
    try:
        folder = gin.query_parameter("%MODEL_DIR")
        return None if folder is None else Path(folder)
    except ValueError:
        raise UserError(
            "the recipe has no name MODEL_DIR", "add a line MODEL_DIR = 'runs/...'"
        ) from None


@contextlib.contextmanager
def bad_lines(flags: Flags):
    """Bears bad lines where the user allows it, and tells what was left out."""
    if not flags.skip_bad_lines:
        yield
        return
    rejects = (model_dir() or Path()) / "rejects.jsonl"
    with tolerated(rejects, flags.bad_line_rate) as tolerance:
        yield
    for notice in tolerance.notices():
        print(notice)


def recipe_help(flags: Flags) -> str:
    """The header and the names of the recipes of the command line."""
    paths, roots = search(flags)
    parsed = [s for path in paths for s in statements(path, roots, flags)]
    return help.recipe_help(paths[0], parsed)


def search(flags: Flags) -> tuple[list[Path], list[Path]]:
    """The gin files of the command line, and the folders of what they include."""
    gin.clear_config()
    paths = [recipes.find(name, flags.search_paths) for name in flags.gin_files]
    roots = [*(path.parent for path in paths), *flags.search_paths]
    roots.append(recipes.directory())
    for root in roots:
        gin.add_config_file_search_path(str(root))
    return paths, roots


def build_job(flags: Flags):
    """Checks and parses the gin files and bindings, and builds the job they name."""
    with explained(flags):
        read_config(flags)
        return gin.get_configurable("distill_jax.jobs.run")()


def read_config(flags: Flags) -> None:
    """Checks the gin files and bindings and gives them to gin; calls nothing."""
    logging.getLogger().setLevel(logging.WARNING)
    paths, roots = search(flags)
    parsed = [s for path in paths for s in statements(path, roots, flags)]
    trust.refuse_bomb(parsed)
    bindings = [*_imports(parsed), *recipes.bindings(flags, parsed)]
    with _quiet():
        gin.parse_config_files_and_bindings(
            [str(path) for path in paths],
            bindings,
            print_includes_and_imports=False,
        )
    trust.refuse_foreign_names(_named(), flags.allowed_imports)


@contextlib.contextmanager
def explained(flags: Flags):
    """Gin's errors in two lines; ``--debug`` leaves them as they are."""
    try:
        yield
    except UserError as error:
        # Gin's copy of an error has lines of its own behind ours.
        raise UserError(error.what, error.todo) from error
    except _PARSING as error:
        if flags.debug:
            raise
        raise recipes.explain(error, flags.gin_files) from error


def _named() -> dict[str, Any]:
    """Everything that a binding is of or refers to, by its name."""
    # Gin has no public form of these questions.
    named = {}
    for (_, selector), parameters in gin_config._CONFIG.items():
        named[selector] = gin_config._REGISTRY[selector].wrapped
        for reference in _references(parameters):
            named[reference.selector] = reference.configurable.wrapped
    own = (gin_config.macro, gin_config._retrieve_constant, gin_config.singleton)
    return {k: v for k, v in named.items() if not any(v is part for part in own)}


def _references(value: Any) -> Iterator[Any]:
    """References inside a value, keys of dicts included: gin calls those too."""
    if isinstance(value, gin_config.ConfigurableReference):
        yield value
    elif isinstance(value, Mapping):
        yield from _references([*value, *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _references(item)


def _imports(parsed: list) -> list[str]:
    """The recipe's imports: a flag may name what the recipe could, used or not."""
    wanted = (s for s in parsed if isinstance(s, config_parser.ImportStatement))
    lines = dict.fromkeys(statement.format() for statement in wanted)
    return sorted(lines, key=lambda line: "__gin__" not in line)


def statements(
    path: Path, roots: list[Path], flags: Flags, above: tuple[Path, ...] = ()
) -> list:
    """Every statement of a file and of what it includes, refused if it is foreign."""
    found = []
    with open(path, encoding="utf-8") as file:
        for statement in config_parser.ConfigParser(file, _Names()):
            found.append(statement)
            if isinstance(statement, config_parser.ImportStatement):
                trust.refuse_foreign_import(
                    statement.module, path, flags.allowed_imports
                )
            if isinstance(statement, config_parser.IncludeStatement):
                # In gin's own sequence: the file that is checked is the one it reads.
                included = recipes.find(
                    statement.filename, [Path(p) for p in gin_config._LOCATION_PREFIXES]
                )
                trust.refuse_foreign_include(included, path, roots, (*above, path))
                found += statements(included, roots, flags, (*above, path))
    return found


@contextlib.contextmanager
def _quiet():
    """Gin calls each place where it looks for an include in vain an error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class _Names(config_parser.ParserDelegate):
    """Reads references as their names: nothing is imported to look at a file."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return f"@{scoped_configurable_name}{'()' if evaluate else ''}"

    def macro(self, macro_name):
        return f"%{macro_name}"


def console() -> int:
    """The command ``distill_jax``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show an id ends no job.
            stream.reconfigure(errors="backslashreplace")
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())
