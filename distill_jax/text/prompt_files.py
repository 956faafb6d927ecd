"""Prompts as files: the ones that ship, by name, and a user's own, by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError, near
from distill_jax.io.reading import read_json


def shipped(folder: Path) -> list[str]:
    """Names of the prompts in a folder of the package."""
    return sorted(path.stem for path in folder.glob("*.json"))


def read_prompt(name: str | Path, folder: Path, what: str) -> tuple[Path, Any]:
    """A prompt by its name in ``folder``, or by the path of a file of its form.

    Args:
        what: it is called in messages, e.g. "kind of query".

    Returns:
        Its path and what it holds: JSON, or of a ``.txt`` file ``{"user": text}``.

    Raises:
        UserError: no such prompt (those that ship are listed), or no JSON.
    """
    path = Path(name)
    if path.suffix not in (".json", ".txt"):
        path = folder / f"{name}.json"
        if not path.is_file():
            names = shipped(folder)
            raise UserError(
                f"no {what} {str(name)!r}{near(str(name), names)}",
                f"there are {', '.join(names)}; or give the path of a .json or .txt",
            )
    if path.suffix != ".txt":
        return path, read_json(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file", "check the path of the prompt")
    return path, {"user": path.read_text(encoding="utf-8-sig")}
