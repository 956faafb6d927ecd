"""Text that the command line prints instead of running a job."""

from __future__ import annotations

from pathlib import Path

import distill_jax
from distill_jax.cli import flags as command_line
from distill_jax.cli import names, recipes


def answer(flags: command_line.Flags) -> str | None:
    """The text of --version, --list, --show and --help; None where a job is meant."""
    if flags.version:
        return f"distill_jax {distill_jax.__version__}"
    if flags.list:
        return recipes.listing()
    if flags.show is not None:
        return recipes.find(flags.show).read_text(encoding="utf-8").rstrip()
    if flags.help and not flags.gin_files:
        return command_line.USAGE
    return None


def recipe_help(path: Path, parsed: list) -> str:
    """The header of a recipe and its names.

    Args:
        path: the first gin file of the command line.
        parsed: the statements of all gin files, in the order gin reads them.
    """
    values = {name: str(value) for name, value in recipes.names_of(parsed).items()}
    values = {name: _shown(value) for name, value in values.items() if "." not in name}
    return names.help_text(recipes.header(path), values)


def _shown(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= 72 else value[:69] + "..."
