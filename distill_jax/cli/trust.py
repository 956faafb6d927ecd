"""What a gin file may name, include and cost: one from a stranger is a stranger's code.

Gin resolves dotted names through modules, so a file that may import this package could
reach ``os.system`` behind any module that imports ``os``. Three rules keep a recipe to
its purpose: it names declared parts and what the user allows, includes are below the
folders of the recipes, and what its macros expand to has a size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.recipe import registry

MOST_PARTS = 100_000
"""Values that a file may expand to. The largest shipped recipe has some hundreds."""

_REFERENCE = re.compile(r"([%@])([\w./]+)(\(\))?")


def refuse_foreign_import(module: str, path: Path, allowed: Sequence[str]) -> None:
    """A gin file may import this package and what the user allows."""
    if module.split(".")[0] not in ("__gin__", "distill_jax", *allowed):
        raise UserError(
            f"{path} imports {module!r}, which a recipe may not",
            f"if you trust it: --allow_import={module.split('.')[0]}",
        )


def refuse_foreign_names(named: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """What a file binds or calls is a declared part, or of a package of the user's.

    Args:
        named: callables by the name under which the file reaches them.
        allowed: packages that the user allows, by name.
    """
    for name, value in sorted(named.items()):
        home = str(getattr(value, "__module__", None) or type(value).__module__)
        root = home.split(".")[0]
        if registry.is_part(value) or (root != "distill_jax" and root in allowed):
            continue
        if root == "distill_jax":
            raise UserError(
                f"the recipe names {name}, which is not a part of a recipe",
                "distill_jax/recipe/registry.py lists what is; code of your own comes "
                "from a package of yours: --allow_import=PACKAGE",
            )
        raise UserError(
            f"the recipe names {name}, which is of {home!r}: a recipe may not",
            f"if you trust it: --allow_import={root}",
        )


def refuse_foreign_include(
    path: Path, including: Path, roots: Iterable[Path], above: Sequence[Path]
) -> None:
    """Checks that an included file is below a folder of recipes and in no cycle.

    Args:
        path: of the included file, resolved.
        roots: folders of the files given, of ``--gin_search_paths``, and the shipped.
        above: the files that lead here, outermost first.
    """
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise UserError(
            f"{including} includes {path}, outside of the folders of recipes",
            f"if you trust it: --gin_search_paths={path.parent}",
        )
    if path in above:
        raise UserError(
            f"{including} includes {path}, which includes it in turn",
            "take one of the includes out",
        )


def refuse_bomb(statements: Iterable[Any]) -> None:
    """Counts what the values expand to, reference by reference, before they do."""
    values: dict[str, list[Any]] = {}
    for statement in statements:
        if hasattr(statement, "selector"):
            name = "/".join(filter(None, (statement.scope, statement.selector)))
            values.setdefault(name, []).append(statement.value)
    sizes: dict[str, int] = {}

    def size(name: str, within: tuple[str, ...]) -> int:
        if name in sizes or name in within:  # gin itself ends at a circle
            return sizes.get(name, 0)
        found = 1
        for value in values.get(name, ()):
            for other in _references(value):
                found += size(other, (*within, name))
        sizes[name] = found
        return found

    for name in values:
        if size(name, ()) > MOST_PARTS:
            raise UserError(
                f"{name} expands to more than {MOST_PARTS:,} values",
                "write it out; macros of macros grow by their product",
            )


def _references(value: Any) -> list[str]:
    """Macros and calls inside a value, each as often as it occurs."""
    if isinstance(value, str):
        found = _REFERENCE.fullmatch(value)
        # A reference that is not called is not expanded.
        called = found is not None and (found[1] == "%" or found[3] is not None)
        return [found[2]] if found is not None and called else []
    if isinstance(value, Mapping):
        return _references([*value, *value.values()])
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [name for part in value for name in _references(part)]
    return []
