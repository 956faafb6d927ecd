"""What papers say, as data, and where a job differs from it.

``gin_configs/papers/RECIPE.json`` lists the elements of the paper that a recipe is of:
the value, its place in the paper, and either the attribute of the built job that
carries it or why the recipe differs; and the figures that the paper reports, each with
the flags that make the same configuration.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill_jax.cli import recipes


def shipped() -> list[str]:
    """Names of the recipes that a paper is written down for."""
    return [
        path.stem for path in sorted((recipes.directory() / "papers").glob("*.json"))
    ]


def paper_of(recipe: str) -> dict[str, Any] | None:
    """The paper of a recipe by its name; None where none is written down."""
    path = recipes.directory() / "papers" / f"{Path(recipe).stem}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def figures_of(recipe: str | None) -> dict[frozenset[tuple[str, str]], str]:
    """What a paper reports, by the names and values that lead to it."""
    paper = None if recipe is None else paper_of(recipe)
    found = {}
    for figure in paper["figures"] if paper else ():
        pairs = (flag.removeprefix("--gin.").partition("=") for flag in figure["flags"])
        key = frozenset((name, value) for name, _, value in pairs)
        found.setdefault(key, str(figure["value"]))
    return found


def value_at(job: Any, path: str) -> Any:
    """The value at a path like ``stages.NAME.training.batch_size`` of a job, JSON-able.

    Parts are attributes, keys of dictionaries, and of tuples the ``name`` or the number
    of an item. Classes and functions are shown by their names.
    """
    found = job
    for part in path.split("."):
        if isinstance(found, tuple | list):
            named = [item for item in found if getattr(item, "name", None) == part]
            found = named[0] if named else found[int(part)]
        elif isinstance(found, dict):
            found = found[part]
        else:
            found = getattr(found, part)
    return plain(found)


def plain(value: Any) -> Any:
    """JSON-able: objects by the names of their classes, functions by their own."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return plain(value.func)
    if hasattr(value, "path") and hasattr(value, "query_path"):
        return plain(value.path)
    inner = getattr(value, "__wrapped__", value)
    return getattr(inner, "__name__", type(inner).__name__)


def differences(paper: dict[str, Any], job: Any) -> Iterator[str]:
    """A line for each element of the paper that the job has otherwise."""
    for element in paper["elements"]:
        if "differs" in element:
            why = element["differs"]
            yield f"{element['element']}: {element['value']} there; {why}"
        if "binding" not in element:
            continue
        wanted = element.get("here", element["value"])
        try:
            found = value_at(job, element["binding"])
        except (AttributeError, KeyError, IndexError, ValueError):
            found = "absent"
        if found != wanted:
            yield f"{element['element']}: {element['value']} there, {found} here"


def plan_lines(gin_files: Sequence[str], job: Any) -> str:
    """The lines that ``--plan`` ends with; "" for a recipe without a paper."""
    job = getattr(job, "job", job)  # of variants, the recipe's own
    for name in gin_files:
        paper = paper_of(name)
        if paper is not None:
            lines = [f"  {line}" for line in differences(paper, job)]
            head = f"\ndiffers from the paper ({paper['paper']}) in"
            told = [head, *(lines or ["  nothing that is written down"])]
            return "\n".join(told) + "\n"
    return ""
