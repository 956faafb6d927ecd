"""Sizes and SHA-256 of files: what was finished is what is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError

# What was summed in this process: a file is read for its sum once.
_seen: dict[tuple[str, int, int], str] = {}


def sum_of(path: str | Path) -> tuple[int, str]:
    """(bytes, SHA-256 in hex) of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        status = os.stat(path)
        key = (os.path.realpath(path), status.st_size, status.st_mtime_ns)
        if key not in _seen:
            with open(path, "rb") as file:
                _seen[key] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}", "check the path"
        ) from None
    return status.st_size, _seen[key]


def take(directory: str | Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """``{name: [bytes, SHA-256]}`` of the files of a folder.

    Args:
        names: relative to it; None takes all but hidden ones, and leaves folders out
            that have a ``part.json`` of their own.
    """
    directory = Path(directory)
    found = sorted(_files(directory)) if names is None else names
    return {name: list(sum_of(directory / name)) for name in found}


def check(directory: str | Path, sums: Mapping[str, Any], todo: str) -> None:
    """Compares files with what ``take`` found when they were finished.

    Raises:
        UserError: with the file's name, where one is gone, or has another size or sum.
    """
    directory = Path(directory)
    if not isinstance(sums, Mapping):
        raise UserError(f"{directory}: its record of files is damaged", todo)
    for name, recorded in sums.items():
        path = directory / name
        if not isinstance(recorded, list) or len(recorded) != 2:
            raise UserError(f"{directory}: its record of {name} is damaged", todo)
        if not path.is_file():
            raise UserError(f"{path}: gone since it was finished", todo)
        size = path.stat().st_size
        if size != recorded[0]:
            raise UserError(
                f"{path}: damaged, it has {size:,} bytes, and had {recorded[0]:,}"
                " when it was finished",
                todo,
            )
        if sum_of(path)[1] != recorded[1]:
            raise UserError(
                f"{path}: damaged, its bytes are not those that it was finished with",
                todo,
            )


def _files(directory: Path) -> Iterable[str]:
    for folder, folders, names in os.walk(directory):
        at = Path(folder)
        if at != directory and "part.json" in names:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name != "part.json" and not name.startswith("."):
                yield (at / name).relative_to(directory).as_posix()
