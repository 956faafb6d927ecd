"""Digests of the models and files that a recipe names, for the records of steps.

A path stays the same while its content changes. So cached results are keyed by the
content of files, not by their paths.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from distill_jax.io.files import digest
from distill_jax.io.fingerprint import contents, is_left_out

# A prompt that ships has none of these endings.
_PROMPT_FILES = (".json", ".txt")
# A larger file is known by its size and time: hashing it would take too long.
_LARGE = 256 << 20


def dependencies(value: Any, context: Any) -> dict[str, str]:
    """Digests of what the dataclasses in ``value`` read by a name.

    ``initial`` and ``stage:NAME`` are models of this job, and no checkpoint is the
    student of the moment. ``hf:`` and ``package:`` are others' releases, which their
    names identify.

    Args:
        value: a source, a teacher, a maker, or a sequence of them.
        context: of ``recipe.candidates``: it has the student and the models.
    """
    found: dict[str, str] = {}
    if hasattr(value, "query_path"):  # a checkpoint with how it is read
        value = _paths(value)
        return {
            k: v for name in value for k, v in _named("model", name, context).items()
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name, content in contents(type(value)).items():
            found |= _named(content.of, getattr(value, name), context)
        fields = [f for f in dataclasses.fields(value) if not is_left_out(f)]
        value = [getattr(value, field.name) for field in fields]
    if isinstance(value, tuple | list):
        for item in value:
            found |= dependencies(item, context)
    return found


def _paths(checkpoint: Any) -> list[Any]:
    """The paths that a ``Checkpoint`` names; None is the student."""
    while hasattr(checkpoint.path, "query_path"):
        checkpoint = checkpoint.path
    queries = checkpoint.query_path
    return [checkpoint.path, *([] if queries is None else [queries])]


def _named(what: str, name: Any, context: Any) -> dict[str, str]:
    if hasattr(name, "query_path"):
        return {}  # read with its own fields
    if isinstance(name, tuple | list):
        return {k: v for item in name for k, v in _named(what, item, context).items()}
    if what == "model" and name is None:
        return {} if context.student is None else {"student": context.student.digest}
    if what == "model" and (name == "initial" or str(name).startswith("stage:")):
        return {name: context.model(name).digest}
    if what == "prompt" and not str(name).endswith(_PROMPT_FILES):
        return {}
    found = of_path(name)
    return {} if found is None else {str(name): found}


def of_path(name: Any) -> str | None:
    """Digest of the files at a path; None where there are none.

    Of a ``MODEL_DIR`` the student alone counts.
    """
    if not isinstance(name, str | Path) or not name or not Path(name).exists():
        return None
    path = Path(name)
    if (path / "student").is_dir():
        path = path / "student"
    files = (
        [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    )
    return digest(*[(str(file.relative_to(path)), *_content(file)) for file in files])


def _content(file: Path) -> tuple[Any, ...]:
    status = file.stat()
    if status.st_size > _LARGE:
        return status.st_size, status.st_mtime_ns
    return (digest(file.read_bytes()),)
