"""Export folders that are whole or absent, and the files that all of them share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import (
    as_full,
    flush_folder,
    flush_tree,
    staging,
    sweep,
    unwritable,
)
from distill_jax.io.reading import write_json

MARK = "verification.json"
# Of a ColBERT these are read from the folder itself; word ids from the tokenizer.
_NOT_STATED = (
    "backbone",
    "word_ids",
    "query_marker",
    "doc_marker",
    "marker_position",
    "mask_id",
    "skiplist",
    "wrap",
)


@contextlib.contextmanager
def replaced(directory: str | Path) -> Iterator[Path]:
    """A folder aside that takes ``directory``'s place when the block succeeds.

    An export that is there already stays until then; nothing is left behind by a
    failure.

    Raises:
        UserError: ``directory`` holds something other than an export.
    """
    directory = Path(os.path.abspath(directory))
    if directory.is_file():
        raise UserError(f"{directory} is a file", "give a folder to export to")
    taken = directory.is_dir() and any(directory.iterdir())
    if taken and not (directory / MARK).is_file():
        raise UserError(
            f"{directory} is not empty and holds no earlier export",
            "export to another folder: this one would be replaced",
        )
    try:
        sweep(directory.parent, directory.name[:80])
        aside = staging(directory.parent, directory.name)
    except OSError as error:
        raise unwritable(directory, error) from error
    try:
        yield aside
        flush_tree(aside)
        # A temporary folder is private (0700); an export must be readable by a server.
        aside.chmod(0o755)
        for path in aside.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if directory.exists():
            old = staging(directory.parent, directory.name)
            os.replace(directory, old)  # an empty folder gives way to a rename
            try:
                os.replace(aside, directory)
            except OSError:
                os.replace(old, directory)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(aside, directory)
        flush_folder(directory.parent)
    except UserError:
        raise
    except Exception as error:
        # safetensors has an error of its own for a full disk.
        found = as_full(error) or (error if isinstance(error, OSError) else None)
        if found is None:
            raise
        raise UserError(
            f"{directory}: the export could not be written ({found})",
            "free space or fix the permissions, and export again",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_model(
    folder: Path, config: dict, tensors: Mapping[str, np.ndarray], note: dict | None
) -> None:
    """``config.json`` and ``model.safetensors`` as transformers names them."""
    folder.mkdir(parents=True, exist_ok=True)
    if note is not None:
        config = {**config, "distill_jax": note}
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", tensors)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file in float32, marked as PyTorch's kind of layout."""
    from safetensors.numpy import save_file

    arrays = {
        name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()
    }
    # transformers refuses files that do not say so.
    save_file(arrays, str(path), metadata={"format": "pt"})


def note_of(spec: Any, longest: int | None = None, **changes: Any) -> dict:
    """What our own reader cannot see in the folder: the rest of the spec.

    Args:
        longest: the limit that the folder's files give: while they do, the lengths of
            queries and of documents are those noted.
    """
    fields = {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(spec)
        if field.name not in _NOT_STATED
    }
    fields.update(changes)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    note = {"kind": spec.kind, "fields": plain}
    return note if longest is None else {**note, "longest": longest}


def as_numpy(tree: Any) -> Any:
    """A nested dict of arrays on the host."""
    if isinstance(tree, dict):
        return {key: as_numpy(value) for key, value in tree.items()}
    return np.asarray(tree)
