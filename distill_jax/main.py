"""``python -m distill_jax.main --gin_file=RECIPE``: flags and gin to one job.

This is the only file that knows gin. A recipe imports what it names and builds the
very objects; here its statements are checked, parsed, and the job they make is called.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path

import gin
from gin import config_parser

from distill_jax.ir.errors import UserError
from distill_jax.jobs import recipes

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
)


def main(argv: list[str]) -> int:
    """Runs one job; returns the exit status: 0 complete, 2 a mistake, 3 partial."""
    started = time.time()
    try:
        flags = recipes.parse_flags(argv)
        if flags.list:
            print(recipes.listing())
            return 0
        job = build_job(flags)
        if flags.plan:
            return job.plan() or 0
        status = job(config=gin.config_str(), command=recipes.command_line(argv)) or 0
        print(f"finished in {recipes.duration(time.time() - started)}")
        return status
    except UserError as error:
        print(error, file=sys.stderr)
        return error.status


def build_job(flags: recipes.Flags):
    """Checks and parses the gin files and bindings, and builds the job they name."""
    logging.getLogger().setLevel(logging.WARNING)
    gin.clear_config()
    paths = [recipes.find(name, flags.search_paths) for name in flags.gin_files]
    try:
        parsed = [s for path in paths for s in statements(path, flags)]
        bindings = recipes.bindings(flags, parsed)
        with _quiet():
            gin.parse_config_files_and_bindings(
                [str(path) for path in paths],
                bindings,
                print_includes_and_imports=False,
            )
        return gin.get_configurable("distill_jax.jobs.run")()
    except UserError as error:
        # Gin's copy of an error has lines of its own behind ours.
        raise UserError(error.what, error.todo) from error
    except _PARSING as error:
        if flags.debug:
            raise
        raise recipes.explain(error, paths) from error


def statements(path: Path, flags: recipes.Flags) -> list:
    """Every statement of a file and of what it includes, refused if it is foreign."""
    found = []
    gin.add_config_file_search_path(str(path.parent))
    with open(path, encoding="utf-8") as file:
        for statement in config_parser.ConfigParser(file, _Names()):
            found.append(statement)
            if isinstance(statement, config_parser.ImportStatement):
                recipes.refuse_foreign_import(statement.module, path, flags)
            if isinstance(statement, config_parser.IncludeStatement):
                roots = (path.parent, *flags.search_paths)
                included = recipes.find(statement.filename, roots)
                found += statements(included, flags)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
