"""Paths as users type them: one place that expands and refuses them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from distill_jax.io import buckets
from distill_jax.io.errors import UserError, clip

_VARIABLE = re.compile(r"\$\{?[A-Za-z_]")


def user_path(path: str | Path) -> str:
    """A path of this machine, with ``~`` expanded: a shell leaves it after ``=``.

    What a URL (``s3://``, ``gs://``) names is fetched into the cache folder.

    Raises:
        UserError: it is empty, holds a control character or a variable of the shell, or
            is a URL that cannot be fetched.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{clip(str(path))} is not a path", "write it as text")
    text = os.fspath(path)
    if not text.strip():
        raise UserError("a path is empty", "write . for the working folder")
    if any(ord(character) < 32 for character in text):
        raise UserError(f"the path {clip(text)} holds a control character")
    if _VARIABLE.search(text) and not os.path.exists(text):
        raise UserError(
            f"{clip(text)} holds a variable that the shell did not fill in",
            'write it without quotes, or in double ones: "$HOME/..."',
        )
    if buckets.is_url(text):
        return buckets.local(text)
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text and not os.path.exists(text):
        raise UserError(f"{clip(text)}: there is no such home folder")
    return expanded


_MODEL_SCHEMES = ("hf:", "package:", "stage:", "fresh:")


def model_name(name: str) -> str:
    """What a model is named by: ``hf:``, ``package:``, ``stage:``, ``fresh:``,
    ``initial``, or a path, which is expanded.

    Raises:
        UserError: no name follows the scheme, or the path is invalid.
    """
    for scheme in _MODEL_SCHEMES:
        if name.startswith(scheme):
            if not name.removeprefix(scheme).strip():
                raise UserError(f"{clip(name)} names no model", f"write {scheme}NAME")
            return name
    return name if name == "initial" else user_path(name)
