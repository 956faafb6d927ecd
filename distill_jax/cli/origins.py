"""Which file or flag of a command set which name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill_jax.cli import recipes

OVERLAY = "OVERLAY"
"""A gin file that sets this name goes on top of several recipes: each takes what it
has."""
EVERYWHERE = ("MODEL_DIR", "COLLECTION", "SEED", OVERLAY)
"""Names of every recipe, also of those that have no use for them."""


class Names:
    """Who set which name: the recipe, its overlays, or the user."""

    def __init__(self, parsed: Sequence[Any]):
        self._parsed = [s for s in parsed if hasattr(s, "arg_name")]
        macros = [s for s in self._parsed if not s.arg_name]
        self._overlays = {
            _file(s) for s in macros if s.selector == OVERLAY and s.value is True
        }
        shipped = [s for s in macros if _is_shipped(s)]
        self.recipe = {_name(s) for s in shipped if _file(s) not in self._overlays}
        # What a recipe demands is given, whether its other settings use it or not.
        required = {_name(s) for s in shipped if s.value == recipes.REQUIRED}
        self.free = {*EVERYWHERE, *required}

    def of_user(self, flags: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """(where, name) of each binding that a user wrote, flags last."""
        for statement in self._parsed:
            if not _is_shipped(statement) and _file(statement) not in self._overlays:
                location = statement.location
                where = f"{Path(location.filename).name}:{location.line_num}"
                yield where, _name(statement)
        for name, value in flags:
            yield f"--gin.{name}={value}"[:80], name


def _file(statement: Any) -> Path:
    return _resolved_file(statement.location.filename or "")


# The disk is asked once for a file, not once for each of its lines.
@functools.cache
def _resolved_file(name: str) -> Path:
    return Path(name).resolve()


@functools.cache
def _is_of_package(path: Path) -> bool:
    return path.is_relative_to(recipes.directory().resolve())


def _is_shipped(statement: Any) -> bool:
    return _is_of_package(_file(statement))


def _name(statement: Any) -> str:
    name = ".".join(filter(None, (statement.selector, statement.arg_name)))
    return "/".join(filter(None, (statement.scope, name)))
