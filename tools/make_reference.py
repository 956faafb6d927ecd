"""Writes docs/reference.md from the registry of names."""

from __future__ import annotations

from pathlib import Path

from distill_jax import main
from distill_jax.cli import names, recipes
from distill_jax.cli.flags import parse_flags

PAGE = Path(__file__).resolve().parent.parent / "docs/reference.md"


def of_recipe(path: Path) -> list[str]:
    """The names that a recipe, and what it includes, sets."""
    flags = parse_flags([f"--gin_file={path}"])
    paths, roots = main.search(flags)
    parsed = main.statements(paths[0], roots, flags)
    return [name for name in recipes.names_of(parsed) if "." not in name]


if __name__ == "__main__":
    found = {
        path.name: of_recipe(path)
        for path in sorted(recipes.directory().glob("*.gin"))
        if path.name not in recipes.OVERLAYS
    }
    PAGE.write_text(names.reference(found), encoding="utf-8")
    print(PAGE)
