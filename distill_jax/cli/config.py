"""Gin files and bindings: checked, parsed, typed, and the job they name.

Only this room knows gin. A recipe imports what it names and builds the very objects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from distill_jax.cli import bindings, help, origins, papers, recipes, trust
from distill_jax.cli.flags import Flags
from distill_jax.io import buckets
from distill_jax.io.errors import UserError, clip
from distill_jax.io.paths import user_path
from distill_jax.io.values import Text

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
    LookupError,
    tokenize.TokenError,
)
_DYNAMIC = "from __gin__ import dynamic_registration"


@dataclasses.dataclass(frozen=True)
class Config:
    """What a job was built of.

    Attributes:
        text: every binding, as a gin file that makes the same job.
        directory: ``MODEL_DIR``; None for a job that has none.
    """

    text: str
    directory: Path | None


def build_job(flags: Flags) -> Any:
    """Checks and parses the gin files and bindings, and builds the job they name."""
    return configured_job(flags)[0]


def configured_job(flags: Flags) -> tuple[Any, Config]:
    """The job and the configuration that it was built of.

    Raises:
        UserError: a mistake in a file or a flag, or a binding that nothing reads.
    """
    job, config, unread = _configured(flags)
    if hasattr(job, "build"):
        build = functools.partial(_variant, flags)
        figures = papers.figures_of(job.paper)
        return dataclasses.replace(job, build=build, figures=figures), config
    for where, name, known in unread:
        raise bindings.unread_error(where, name, known)
    return job, config


def _configured(flags: Flags) -> tuple[Any, Config, list[tuple[str, str, set[str]]]]:
    """The job, its configuration, and what nothing of it reads."""
    with explained(flags):
        found = read_config(flags)
        # The record holds what the recipe leaves unused, too.
        text = f"{gin.config_str()}\n{origins.OVERLAY} = True\n"
        config = Config(text=text, directory=_directory())
        found.make_functions()
        job = gin.get_configurable("distill_jax.jobs.run")()
        if not hasattr(job, "build") and not (callable(job) and hasattr(job, "plan")):
            raise UserError(
                f"jobs.run.job is {clip(repr(job), 60)}, which is not a job",
                "a recipe binds one, as in jobs.run.job = @distill.Distill()",
            )
        return job, config, list(found.unread())


def _variant(
    flags: Flags, changes: Mapping[str, str]
) -> tuple[Any, str, frozenset[str]]:
    """The job of a recipe of variants under these changes, its gin text, and names
    that nothing of it reads."""
    kept = [binding for binding in flags.bindings if binding[0] not in changes]
    bindings = (*kept, *changes.items())
    job, config, unread = _configured(dataclasses.replace(flags, bindings=bindings))
    text = f"{config.text}\njobs.run.job = @distill.Distill()\n"
    return job.job, text, frozenset(name for _, name, _ in unread)


def read_config(flags: Flags) -> bindings.Bindings:
    """Checks the gin files and bindings and gives them to gin; calls nothing."""
    logging.getLogger().setLevel(logging.WARNING)
    paths, roots = _search(flags)
    parsed = [s for path in paths for s in statements(path, roots, flags)]
    trust.refuse_bomb(parsed)
    lines = [*_imports(parsed), *recipes.bindings(flags, parsed)]
    with _quiet():
        gin.parse_config_files_and_bindings(
            [str(path) for path in paths], lines, print_includes_and_imports=False
        )
    trust.refuse_foreign_names(_named(), flags.allowed_imports)
    found = bindings.Bindings(parsed, flags.bindings)
    _place_directory()
    found.settle()
    return found


def recipe_help(flags: Flags) -> str:
    """The header and the names of the recipes of the command line."""
    first = recipes.find(flags.gin_files[0], flags.search_paths)
    return help.recipe_help(first, all_statements(flags))


def all_statements(flags: Flags) -> list:
    """Every statement of the recipes of the command line; gin's state is unchanged."""
    paths, roots = _search(flags)
    return [s for path in paths for s in statements(path, roots, flags)]


def _search(flags: Flags) -> tuple[list[Path], list[Path]]:
    """The gin files of the command line, and the folders of what they include."""
    gin.clear_config()
    paths = [recipes.find(name, flags.search_paths) for name in flags.gin_files]
    roots = [*(path.parent for path in paths), *flags.search_paths]
    roots.append(recipes.directory())
    for root in roots:
        gin.add_config_file_search_path(str(root))
    return paths, roots


def _place_directory() -> None:
    """Before values are read as paths: a ``MODEL_DIR`` in a bucket is an output."""
    bound = gin_config._CONFIG.get(("MODEL_DIR", "gin.macro"), {}).get("value")
    bound = recipes.as_text(bound)
    url = bound.text if isinstance(bound, Text) else bound
    if isinstance(url, str) and buckets.is_url(url):
        buckets.place(url)


def _directory() -> Path | None:
    bound = gin_config._CONFIG.get(("MODEL_DIR", "gin.macro"))
    if bound is None:
        raise UserError(
            "the recipe has no name MODEL_DIR",
            "a gin file that goes on top of a recipe comes after it: "
            "--gin_file=RECIPE.gin --gin_file=...",
        )
    folder = bound["value"]
    return None if folder is None else Path(user_path(folder))


@contextlib.contextmanager
def explained(flags: Flags):
    """Gin's errors in two lines; ``--debug`` leaves them as they are."""
    try:
        yield
    except UserError as error:
        # Gin's copy of an error appends its own lines to ours.
        raise UserError(_with_flag(error.what, flags), error.todo) from error
    except _PARSING as error:
        if flags.debug:
            raise
        raise recipes.explain(error, flags.gin_files) from error


def _with_flag(what: str, flags: Flags) -> str:
    """A part's own complaint, with the flag whose value it is about."""
    for name, text in flags.bindings:
        shown = (repr(text), f" is {text}:") if text else (repr(text),)
        if name not in what and any(form in what for form in shown):
            return f"{name}: {what}"
    return what


def _named() -> dict[str, Any]:
    """Everything that a binding is of or refers to, by its name."""
    # Gin has no public API for this.
    named = {}
    for (_, selector), parameters in gin_config._CONFIG.items():
        named[selector] = gin_config._REGISTRY[selector].wrapped
        for reference in _references(parameters):
            named[reference.selector] = reference.configurable.wrapped
    own = (gin_config.macro, gin_config._retrieve_constant)
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
    return sorted(lines, key=lambda line: line != _DYNAMIC)


def statements(
    path: Path, roots: list[Path], flags: Flags, above: tuple[Path, ...] = ()
) -> list:
    """Every statement of a file and of what it includes, refused if it is foreign."""
    found = []
    with open(path, encoding="utf-8") as file:
        for statement in config_parser.ConfigParser(file, Names()):
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
    """Hides gin's error line for each place that it searched for an include."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class Names(config_parser.ParserDelegate):
    """Reads references as their names: nothing is imported to look at a file."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return f"@{scoped_configurable_name}{'()' if evaluate else ''}"

    def macro(self, macro_name):
        return f"%{macro_name}"
