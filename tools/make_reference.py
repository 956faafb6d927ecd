"""Writes docs/reference.md from the registry of names."""

from __future__ import annotations

from pathlib import Path

from distill_jax.cli import config, names, recipes
from distill_jax.cli.flags import parse_flags

PAGE = Path(__file__).resolve().parent.parent / "docs/reference.md"


def page() -> str:
    """The page, as the registry and the shipped recipes have it now."""
    found = {}
    for path in sorted(recipes.directory().glob("*.gin")):
        if path.name not in recipes.OVERLAYS:
            parsed = config.all_statements(parse_flags([f"--gin_file={path}"]))
            found[path.name] = [n for n in recipes.names_of(parsed) if "." not in n]
    return names.reference(found)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
